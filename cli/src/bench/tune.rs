//! `bench --tune`: times every variant of kernels that have several, and keeps the fastest for the sessions to come.

use super::{Effort, measure};
use crate::Failure;
use crate::terminal::{note, result};
use mobilediffusion_graph::Recording;
use mobilediffusion_kernels::runner::{judge, stored, variant_tolerance};
use mobilediffusion_kernels::tuning::Tuning;
use mobilediffusion_kernels::variant::{Machine, choose, runnable};
use mobilediffusion_kernels::{Case, Family, Storage, Variant, check, family, sample};
use mobilediffusion_runtime::{Gpu, Timer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Instant;

/// Seconds that hardware may need for one dispatch by what can be told before: Windows gives a device up after two.
const LONGEST: f64 = 1.0;

/// What is tuned.
#[derive(Clone, Copy)]
pub(super) struct Device<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) storage: Storage,
    pub(super) timer: &'a Timer,
    pub(super) effort: Effort,
}

/// The problems of these families at the model's shapes.
pub(super) fn of_families(families: &[&Family]) -> Vec<Case> {
    families.iter().flat_map(|family| (family.model_shapes)()).collect()
}

/// The problems of a plan, each once.
pub(super) fn of_plan(recording: &Recording) -> Result<Vec<Case>, Failure> {
    let (mut seen, mut cases) = (BTreeSet::new(), Vec::new());
    for node in &recording.nodes {
        let kernel = node.kernel.as_ref();
        let sizes = kernel.params_json();
        if seen.insert(format!("{} {sizes}", kernel.name())) {
            let family = family(kernel.name()).ok_or("a plan has kernels of the list only")?;
            cases.push(Case { kernel: (family.parse)(&sizes)?, fills: Vec::new(), exact: false });
        }
    }
    Ok(cases)
}

/// Times the variants of the problems that have several; gives the numbers for a file.
pub(super) fn run(device: Device<'_>, cases: &[Case]) -> Result<Value, Failure> {
    let Device { gpu, storage, effort, .. } = device;
    let (mut tuning, ignored) = Tuning::read(gpu);
    ignored.iter().for_each(|why| note(&format!("note: {why}")));
    let estimate = Machine { tuned: Default::default(), ..Machine::of(gpu, storage) };
    let (mut rows, mut left_out) = (Vec::new(), 0);
    for case in cases {
        let kernel = case.kernel.as_ref();
        let mut variants = runnable(kernel, gpu.caps(), storage);
        variants.sort_by(|a, b| a.estimate(&estimate).total_cmp(&b.estimate(&estimate)));
        if variants.len() < 2 {
            continue;
        }
        if kernel.cost().flops > effort.most_flops {
            left_out += 1;
            continue;
        }
        let mut times = match times((device, &estimate), case, &variants) {
            Err(error) if measure::is_too_large(error.as_ref()) => {
                left_out += 1;
                continue;
            }
            times => times?,
        };
        times.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (estimated, (best, _)) = (choose(kernel, &estimate), times[0]);
        tuning.note(gpu.adapter(), (kernel, storage), &best);
        let each = times.iter().map(|(variant, seconds)| format!("{} {:.1}", variant.name, seconds * 1e6));
        let each = each.collect::<Vec<_>>().join(", ");
        let (name, shape) = (kernel.name(), sample::text(kernel));
        result(&format!("{name:18} {:10} (estimated {}; us: {each}) {shape}", best.name, estimated.name))?;
        let times = times.iter().map(|(variant, seconds)| (variant.name.to_owned(), json!(seconds * 1e6)));
        let times = times.collect::<serde_json::Map<_, _>>();
        rows.push(json!({"kernel": name, "shape": shape, "estimated": estimated.name, "best": best.name, "us": times}));
    }
    if left_out > 0 {
        note(&format!("{left_out} shapes were left out: too long or too large for this device"));
    }
    tuning.write(gpu)?;
    note(&format!("kept the fastest variants of {} problems for sessions on this adapter", rows.len()));
    Ok(json!(rows))
}

/// The median seconds of each variant, all of which have to compute the same; without those that could take a device too
/// long. The first is the one that is estimated to be the fastest.
fn times(
    (device, estimate): (Device<'_>, &Machine),
    case: &Case,
    variants: &[Variant],
) -> Result<Vec<(Variant, f64)>, Failure> {
    let Device { gpu, storage, timer, effort } = device;
    let kernel = case.kernel.as_ref();
    let inputs = stored(kernel, storage, sample::inputs(case, measure::SEED));
    let (mut first, mut all): (Option<Vec<Vec<f64>>>, _) = (None, Vec::new());
    let mut longest = None;
    for variant in variants {
        let expected = variant.estimate(estimate);
        if longest.is_some_and(|longest| expected > longest) {
            continue;
        }
        let (dispatches, written) = measure::prepare((gpu, storage), case, variant, &inputs)?;
        let start = Instant::now();
        gpu.submit(dispatches.first())?;
        gpu.wait()?;
        let one = start.elapsed().as_secs_f64();
        if !effort.software {
            longest.get_or_insert(expected * LONGEST / one);
        }
        let runs = measure::runs(one, effort);
        let got = measure::read((gpu, storage), &written)?;
        let wide = |((operand, _), values): (&(_, _), &Vec<f32>)| check::widen(operand, values);
        match &first {
            None => first = Some(written.iter().zip(&got).map(wide).collect()),
            Some(first) => {
                // Both may be off by the tolerance, in opposite directions.
                let coarser = if variants[0].rounds { &variants[0] } else { variant };
                let mut allowed = variant_tolerance(case, storage, coarser);
                allowed.absolute *= 2.0;
                allowed.relative *= 2.0;
                if let Some(why) = judge(kernel, &got, first, allowed).failure {
                    return Err(format!("{kernel:?}: {} and {} differ: {why}", variants[0].name, variant.name).into());
                }
            }
        }
        let mut seconds = timer.time_in_turn(gpu, &dispatches, runs)?;
        seconds.sort_by(f64::total_cmp);
        all.push((*variant, seconds[seconds.len() / 2]));
    }
    Ok(all)
}
