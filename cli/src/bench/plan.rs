//! `bench --plan`: checks a network's plan and times it step by step.

use super::measure;
use crate::Failure;
use crate::graphs::{NetworkName, borrowed, inputs, recorded, weights};
use crate::terminal::{note, result};
use mobilediffusion_graph::{Against, Device, Recording, Session, Weights, compare};
use mobilediffusion_kernels::{Storage, Variant, sample};
use mobilediffusion_runtime::AdapterKind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Network to time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) name: NetworkName,
    pub(super) networks: &'a crate::args::Networks,
    /// Scale of guidance; `None` stands for the model's own.
    pub(super) guidance: Option<f32>,
    /// Number of timed runs if there is time, and the largest number of runs of a short plan.
    pub(super) runs: (usize, usize),
}

/// Checks a plan, times it up to `runs` times while there is time, and returns the numbers for a file.
pub(super) fn run(subject: Subject<'_>, device: &Device, time_left: &dyn Fn() -> bool) -> Result<Value, Failure> {
    let Subject { name, networks, guidance, runs } = subject;
    let source = networks.source()?;
    let (network, recording, title) = recorded(name, &source.config, networks.size, guidance)?;
    result(&format!("plan: {title}"))?;
    let rounded = Storage::F32.with_weights(device.storage().weights);
    let weights = weights(network, &source, device)?.rounded(rounded);
    let values = inputs(&recording);
    if device.gpu().is_some() {
        // The CPU gets the rounded values that int8 weights stand for, not those of the file.
        let cpu = Weights::new(Device::CPU, source.open(network)?).rounded(rounded);
        let found = compare(&recording, Against::Device(&cpu), &weights, &borrowed(&values))?;
        found.map_or(Ok(()), |divergence| Err(format!("the plan computes a wrong result: {divergence}")))?;
    }
    let mut session = Session::new(recording, &weights)?;
    repeats(&mut session, &values)?;
    if matches!(device, Device::Gpu(gpu, _) if gpu.adapter().kind != AdapterKind::Software) {
        // An idle GPU has lowered its clocks, and the checks above leave it idle most of the time.
        let begin = Instant::now();
        while begin.elapsed() < WARM_UP {
            write(&mut session, &values)?;
            session.run()?;
        }
    }
    let whole = repeated(runs, time_left, || {
        write(&mut session, &values)?;
        let start = Instant::now();
        session.run()?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    let each = repeated((runs.0, runs.0), time_left, || {
        write(&mut session, &values)?;
        Ok(session.run_timed()?)
    })?;
    let overhead = overhead(&mut session)?;
    let mut measured = report((session.recording(), session.variants()), &each, (whole, overhead))?;
    measured["storage"] = weights.device().storage().to_string().to_lowercase().into();
    Ok(measured)
}

/// Time that is always granted to runs: the checks may have used up the time there was.
const SHORT: Duration = Duration::from_secs(1);

/// Time for which a GPU repeats a plan before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// Runs `once` `least` times if there is time, and up to `most` times within [`SHORT`].
fn repeated<T>(
    (least, most): (usize, usize),
    time_left: &dyn Fn() -> bool,
    mut once: impl FnMut() -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let (begin, mut all) = (Instant::now(), vec![once()?]);
    let is_short = || begin.elapsed() < SHORT;
    while all.len() < least && time_left() || all.len() < most && is_short() {
        all.push(once()?);
    }
    Ok(all)
}

/// Measures the median time in seconds that the host spends on a run on a GPU; `None` on the CPU.
fn overhead(session: &mut Session) -> Result<Option<f64>, Failure> {
    const MOST: usize = 21;
    let (begin, mut all) = (Instant::now(), Vec::new());
    while all.is_empty() || all.len() < MOST && begin.elapsed() < SHORT {
        let Some(seconds) = session.overhead()? else { return Ok(None) };
        all.push(seconds);
    }
    Ok(Some(measure::median(all)))
}

fn write(session: &mut Session, values: &[(String, Vec<f32>)]) -> Result<(), Failure> {
    Ok(values.iter().try_for_each(|(name, values)| session.write(name, values))?)
}

/// Checks that a plan gives the same bits when its memory is poisoned before a run.
fn repeats(session: &mut Session, values: &[(String, Vec<f32>)]) -> Result<(), Failure> {
    let outputs: Vec<String> = session.recording().outputs().iter().map(|(name, _)| name.clone()).collect();
    let mut once = |poisoned: bool| {
        if poisoned {
            session.poison()?;
        }
        write(session, values)?;
        session.run()?;
        let read = outputs.iter().map(|name| Ok(session.read(name)?));
        read.collect::<Result<Vec<_>, Failure>>()
    };
    let bits = |all: Vec<Vec<f32>>| all.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let (first, second) = (bits(once(false)?), bits(once(true)?));
    if first != second {
        return Err("the plan gives a different result when its memory is poisoned before the run".into());
    }
    Ok(())
}

/// Prints the steps, the totals of each kernel and the whole plan, and returns the numbers for a file.
fn report(
    (recording, variants): (&Recording, Option<&[Variant]>),
    runs: &[Vec<(usize, f64)>],
    (mut whole, overhead): (Vec<f64>, Option<f64>),
) -> Result<Value, Failure> {
    whole.sort_by(f64::total_cmp);
    let [least, middle, p90] = [0, whole.len() / 2, whole.len() * 9 / 10].map(|at| whole[at]);
    let of = |index: usize| measure::median(runs.iter().map(|run| run[index].1).collect());
    let mut steps: Vec<(usize, f64)> =
        runs[0].iter().enumerate().map(|(index, (step, _))| (*step, of(index))).collect();
    let sum: f64 = steps.iter().map(|(_, seconds)| seconds).sum();
    steps.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut kernels: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    result(&format!("{:>11} {:>6} {:>9} {:>5} {:18} {:10} at", "us", "%", "GFLOP/s", "step", "kernel", "variant"))?;
    let mut rows = Vec::new();
    for &(step, seconds) in &steps {
        let node = &recording.nodes()[step];
        let kernel = node.kernel.as_ref();
        let total = kernels.entry(kernel.name()).or_default();
        *total = (total.0 + 1, total.1 + seconds);
        let rate = kernel.cost().flops as f64 / seconds.max(1e-9);
        result(&format!(
            "{:11.1} {:6.2} {:9.1} {step:5} {:18} {:10} {} ({})",
            seconds * 1e6,
            100.0 * seconds / sum,
            rate / 1e9,
            kernel.name(),
            variants.map_or("", |all| all[step].name),
            node.path,
            sample::text(kernel)
        ))?;
        let variant = variants.map(|all| all[step].name);
        rows.push(json!({"step": step, "kernel": kernel.name(), "variant": variant, "path": node.path,
            "shape": sample::text(kernel), "params": kernel.params_json(), "median_us": seconds * 1e6,
            "flops_per_second": rate}));
    }
    let mut totals: Vec<_> = kernels.into_iter().collect();
    totals.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    result(&format!("{:>11} {:>6} {:>5} kernel", "us", "%", "steps"))?;
    for (kernel, (count, seconds)) in &totals {
        result(&format!("{:11.1} {:6.2} {count:5} {kernel}", seconds * 1e6, 100.0 * seconds / sum))?;
    }
    let (runs, runs_by_step) = (whole.len(), runs.len());
    result(&format!(
        "steps one by one: {:.3} ms (median of {runs_by_step}); the whole plan: {:.3} ms, from {:.3} on (median of {runs})",
        sum * 1e3,
        middle * 1e3,
        least * 1e3
    ))?;
    if let Some(overhead) = overhead {
        result(&format!("host time for encoding and submitting {} steps: {:.3} ms", steps.len(), overhead * 1e3))?;
    }
    if steps.len() < recording.nodes().len() {
        note("note: steps that depend on no input run only once, so they are not timed");
    }
    let totals: Vec<Value> = totals
        .into_iter()
        .map(|(kernel, (count, seconds))| json!({"kernel": kernel, "steps": count, "us": seconds * 1e6}))
        .collect();
    Ok(json!({"steps": rows, "kernels": totals, "sum_us": sum * 1e6, "whole_us": middle * 1e6,
        "runs": runs, "whole_min_us": least * 1e6, "whole_p90_us": p90 * 1e6,
        "host_us": overhead.map(|seconds| seconds * 1e6)}))
}
