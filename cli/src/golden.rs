//! `golden`: compares a network with golden files, the outputs of another implementation, block by block.

use crate::Failure;
use crate::args::Golden;
use crate::device::{device, open, shown_as};
use crate::terminal::{note, result};
use mobilediffusion_model::WeightType;
use mobilediffusion_model::golden::compare;
use std::sync::Arc;

pub(crate) fn run(args: &Golden) -> Result<(), Failure> {
    let gpu = open(&args.device)?.map(Arc::new);
    let device = device(gpu.as_ref(), Some(args.dtype), WeightType::Floats)?;
    note(&shown_as(&device));
    for agreement in compare(&args.folder, &args.case, &args.folder, device)? {
        result(&format!("{:70} {:.3e}", agreement.output, agreement.relative_l2))?;
    }
    Ok(())
}
