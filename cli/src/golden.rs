//! `golden`: compares a network with golden files, the outputs of another implementation, block by block.

use crate::Failure;
use crate::args::Golden;
use crate::device::{device, open, shown_as};
use crate::terminal::{note, result};
use mobilediffusion_model::WeightType;
use mobilediffusion_model::golden::{Distance, compare, tolerance};
use std::sync::Arc;

pub(crate) fn run(args: &Golden) -> Result<(), Failure> {
    let gpu = open(&args.device)?.map(Arc::new);
    let device = device(gpu.as_ref(), Some(args.dtype), WeightType::Floats)?;
    note(&shown_as(&device));
    let most = args.tolerance.unwrap_or_else(|| tolerance(&device));
    let all = compare(&args.folder, &args.case, &args.folder, device)?;
    result(&format!("{:70} relative L2", "tensor"))?;
    for distance in &all {
        result(&format!("{:70} {:.3e}", distance.output, distance.relative_l2))?;
    }
    // In the total order a NaN without a sign is above all numbers. Of equal errors the first counts.
    let error = |of: &Distance| of.relative_l2.abs();
    let worst = all.iter().rev().max_by(|a, b| error(a).total_cmp(&error(b)));
    let Some(worst) = worst else { return Err("expected a case with outputs, found none".into()) };
    result(&format!("worst: {} {:.3e}", worst.output, worst.relative_l2))?;
    if worst.relative_l2 <= most && worst.relative_l2.is_finite() {
        return Ok(());
    }
    Err(format!("{}: expected a relative L2 error of at most {most:e}, found {:e}", worst.output, worst.relative_l2)
        .into())
}
