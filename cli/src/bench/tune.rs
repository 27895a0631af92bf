//! `bench --tune`: times every variant of each kernel that has several, and saves the fastest for later sessions.

use super::Measured;
use super::measure::{self, Subject, Timed};
use crate::Failure;
use crate::args::{half, time_left};
use crate::compile::compile;
use crate::terminal::{note, one_line, result};
use mobilediffusion_graph::Recording;
use mobilediffusion_kernels::kernel::split;
use mobilediffusion_kernels::runner::{RunError, judge, stored, tolerance};
use mobilediffusion_kernels::tuning::Tuning;
use mobilediffusion_kernels::variant::{Machine, choose, runnable};
use mobilediffusion_kernels::{Case, Family, GpuDevice, Kernel, Storage, Variant, check, family, sample};
use mobilediffusion_runtime::RuntimeError;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Longest expected time in seconds of one dispatch on hardware. Windows resets a device after two seconds.
const LONGEST: f64 = 1.0;

/// Factor beyond which a variant is not tried on hardware: as many times slower than the fastest so far, if all variants
/// kept to their estimates as well as the one that did best.
const HOPELESS: f64 = 4.0;

/// Warm-up of a variant right after another one of the same problem.
const STILL_WARM: Duration = Duration::from_millis(10);

/// Returns the problems of some families at the model's shapes.
pub(super) fn of_families(families: &[&Family]) -> Vec<Case> {
    families.iter().flat_map(|family| (family.model_shapes)()).collect()
}

/// Returns the different problems of a plan, each once. Those with the most operations in the whole plan come first.
pub(super) fn of_plan(recording: &Recording) -> Result<Vec<Case>, Failure> {
    let mut problems: BTreeMap<String, (&dyn Kernel, u64)> = BTreeMap::new();
    for kernel in recording.nodes().iter().map(|node| node.kernel.as_ref()) {
        let problem = format!("{} {}", kernel.name(), kernel.params_json());
        let (_, flops) = problems.entry(problem).or_insert((kernel, 0));
        *flops = flops.saturating_add(kernel.cost().flops);
    }
    let mut problems: Vec<_> = problems.into_values().collect();
    problems.sort_by_key(|(_, flops)| Reverse(*flops));
    let case = |(kernel, _): (&dyn Kernel, u64)| {
        let family = family(kernel.name()).ok_or("a plan holds a kernel that is not in FAMILIES")?;
        Ok(Case { kernel: (family.parse)(&kernel.params_json())?, fills: Vec::new(), exact: false })
    };
    problems.into_iter().map(case).collect()
}

/// Times the variants of every problem that has several, until the time is up, and returns the numbers for a file. A
/// variant that fails or computes a wrong result is reported and left out; the others are kept. What was found is saved
/// after every problem, so that it outlives a device that is lost or a process that is ended. The text says what failed: a
/// variant, or saving the last of it.
pub(super) fn run(device: Subject<'_>, cases: &[Case], until: Option<Instant>) -> Result<Measured, Failure> {
    let Subject { device: GpuDevice { gpu, storage }, effort, .. } = device;
    let (compiling, time_left) = (time_left(half(until)), time_left(until));
    let (tuning, ignored) = Tuning::read(gpu);
    ignored.iter().for_each(|why| note(&format!("note: {why}")));
    let estimate = Machine { tuned: Default::default(), ..Machine::of(device.device) };
    if !effort.software {
        let kernels = cases.iter().map(|case| case.kernel.as_ref());
        let all = kernels.map(|kernel| (kernel, runnable(kernel, gpu.caps(), storage)));
        let several = all.filter(|(_, variants)| variants.len() > 1);
        compile("compiling", &[gpu], storage, several, compiling);
    }
    let (rows, failed) = (Vec::new(), Vec::new());
    let mut report = Report { device, estimate, tuning, unsaved: None, rows, failed, left_out: 0 };
    for case in cases {
        if report.problem(case, &time_left)?.is_break() {
            break;
        }
    }
    let Report { unsaved, rows, failed, left_out, .. } = report;
    if left_out > 0 {
        note(&format!("{left_out} shapes were left out: too long or too large for this device, or the time was up"));
    }
    if unsaved.is_none() {
        note(&format!("kept the fastest variants of {} problems for sessions on this adapter", rows.len()));
    }
    let variants = (!failed.is_empty()).then(|| format!("{} variants failed, see the notes above", failed.len()));
    let saving =
        |why: RuntimeError| format!("not all of the fastest variants were saved: {}", one_line(&why.to_string()));
    let failures: Vec<String> = variants.into_iter().chain(unsaved.map(saving)).collect();
    let failure = (!failures.is_empty()).then(|| failures.join("; "));
    Ok((json!({"problems": rows, "failed": failed}), failure))
}

/// What was found so far.
struct Report<'a> {
    device: Subject<'a>,
    /// The device without what was measured on it before.
    estimate: Machine,
    tuning: Tuning,
    /// Why the table was not saved when it last changed, if so.
    unsaved: Option<RuntimeError>,
    rows: Vec<Value>,
    failed: Vec<Value>,
    /// Number of problems that were left out.
    left_out: usize,
}

impl Report<'_> {
    /// Times the variants of a problem, if it has several, and saves the fastest. Breaks off if the device is lost.
    fn problem(&mut self, case: &Case, time_left: &dyn Fn() -> bool) -> Result<ControlFlow<()>, Failure> {
        let Subject { device: GpuDevice { gpu, storage }, effort, .. } = self.device;
        let kernel = case.kernel.as_ref();
        let (name, shape) = (kernel.name(), sample::text(kernel));
        let mut variants = runnable(kernel, gpu.caps(), storage);
        variants.sort_by(|a, b| a.estimate(&self.estimate).total_cmp(&b.estimate(&self.estimate)));
        if variants.len() < 2 {
            return Ok(ControlFlow::Continue(()));
        }
        if kernel.cost().flops > effort.most_flops || !time_left() {
            self.left_out += 1;
            return Ok(ControlFlow::Continue(()));
        }
        let (mut times, wrong) = match times((self.device, &self.estimate), case, &variants) {
            Err(error) if measure::is_too_large(&error) => {
                self.left_out += 1;
                return Ok(ControlFlow::Continue(()));
            }
            // The device is lost.
            Err(error) => {
                note(&format!("note: {name}: {}", one_line(&error.to_string())));
                self.failed.push(json!({"kernel": name, "shape": shape, "why": error.to_string()}));
                return Ok(ControlFlow::Break(()));
            }
            Ok(times) => times,
        };
        for (variant, why) in wrong {
            note(&format!("note: {name} {}: {}", variant.name, one_line(&why)));
            self.failed.push(json!({"kernel": name, "shape": shape, "variant": variant.name, "why": why}));
        }
        times.sort_by(|a, b| a.1.total_cmp(&b.1));
        self.keep(kernel, &times)?;
        Ok(ControlFlow::Continue(()))
    }

    /// Saves the fastest variant of a problem, the first one, and prints the times.
    fn keep(&mut self, kernel: &dyn Kernel, times: &[(Variant, f64)]) -> Result<(), Failure> {
        let Subject { device: GpuDevice { gpu, storage }, .. } = self.device;
        let Some((best, _)) = times.first() else { return Ok(()) };
        self.tuning.note(gpu.adapter(), (kernel, storage), best);
        // The whole table is written again after the next problem.
        self.unsaved = self.tuning.write(gpu).err();
        let (name, shape) = (kernel.name(), sample::text(kernel));
        let (best, estimated) = (best.name, choose(kernel, &self.estimate).name);
        let micros = || times.iter().map(|(variant, seconds)| (variant.name, seconds * 1e6));
        let each = micros().map(|(name, us)| format!("{name} {us:.1}")).collect::<Vec<_>>().join(", ");
        result(&format!("{name:18} {best:10} (estimated {estimated}; us: {each}) {shape}"))?;
        let times: Map<_, _> = micros().map(|(name, us)| (name.to_owned(), json!(us))).collect();
        self.rows.push(json!({"kernel": name, "shape": shape, "params": kernel.params_json(), "estimated": estimated,
            "best": best, "us": times}));
        Ok(())
    }
}

/// Variants with their median time in seconds.
type Times = Vec<(Variant, f64)>;

/// Variants that failed, with the reason.
type Wrong = Vec<(Variant, String)>;

/// Measures the median time of each variant, the one that is estimated to be the fastest first. All must compute the same.
/// If two differ, the one that ran first is right, except that none with matrix units, which are the least proven part of
/// drivers, is right against one without. On hardware, variants that are not worth it are skipped, see
/// [`is_worth_trying`].
fn times(
    (mut device, estimate): (Subject<'_>, &Machine),
    case: &Case,
    variants: &[Variant],
) -> Result<(Times, Wrong), RunError> {
    let Subject { device: GpuDevice { gpu, storage }, .. } = device;
    let inputs = stored(case.kernel.as_ref(), storage, sample::inputs(case, measure::SEED));
    let by_matrices = |variant: &Variant| variant.needs.matrix.is_some();
    let mut order: Vec<&Variant> = variants.iter().collect();
    if let Some(plain) = order.iter().position(|variant| !by_matrices(variant)).filter(|plain| *plain > 1) {
        order[1..=plain].rotate_right(1);
    }
    let (mut all, mut wrong): (Times, Wrong) = (Vec::new(), Vec::new());
    let mut trusted: Option<(&Variant, Vec<Vec<f32>>)> = None;
    let software = device.effort.software;
    // What ran and was right, as pairs of the estimate and the seconds.
    let mut ran = Vec::new();
    for variant in order {
        let is_better = trusted.as_ref().is_none_or(|(other, _)| by_matrices(other) && !by_matrices(variant));
        let expected = variant.estimate(estimate);
        if !software && !is_worth_trying(expected, &ran, is_better) {
            continue;
        }
        let Timed { seconds, outputs } = match measure::time(device, case, variant, &inputs) {
            Ok(timed) => timed,
            // Without memory for the problem, or after the device is lost, no other variant can run either.
            Err(error) if measure::is_too_large(&error) || gpu.wait().is_err() => return Err(error),
            Err(error) => {
                wrong.push((*variant, error.to_string()));
                continue;
            }
        };
        device.effort.warm_up = STILL_WARM;
        let why = trusted.as_ref().and_then(|other| differs(case, storage, (variant, &outputs), other));
        if let Some(why) = why {
            if !is_better {
                wrong.push((*variant, why));
                continue;
            }
            wrong.extend(all.drain(..).map(|(other, _)| (other, why.clone())));
            ran.clear();
        }
        let median = measure::median(seconds);
        all.push((*variant, median));
        ran.push((expected, median));
        if is_better {
            trusted = Some((variant, outputs));
        }
    }
    Ok((all, wrong))
}

/// Whether to try a variant of this estimate after others, given as pairs of their estimates and seconds: unless it could
/// take longer than [`LONGEST`], or be [`HOPELESS`] beside the fastest at best and not needed to tell what is right.
fn is_worth_trying(estimate: f64, ran: &[(f64, f64)], is_better: bool) -> bool {
    let at_best = ran.iter().map(|(own, seconds)| seconds / own * estimate).fold(f64::INFINITY, f64::min);
    let at_worst = ran.iter().map(|(own, seconds)| seconds / own * estimate).fold(0.0, f64::max);
    let fastest = ran.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
    ran.is_empty() || at_worst <= LONGEST && (is_better || at_best <= HOPELESS * fastest)
}

/// Describes the difference between the outputs of two variants, if it is more than both may be off.
fn differs(
    case: &Case,
    storage: Storage,
    (variant, outputs): (&Variant, &[Vec<f32>]),
    (other, expected): &(&Variant, Vec<Vec<f32>>),
) -> Option<String> {
    let kernel = case.kernel.as_ref();
    let coarser = if other.rounds { other } else { variant };
    let allowed = tolerance(case, storage, coarser).doubled();
    let (_, written) = split(kernel);
    let expected: Vec<Vec<f64>> = written.iter().zip(expected).map(|(o, values)| check::to_f64(o, values)).collect();
    let why = judge(kernel, outputs, &expected, allowed).failure?;
    Some(format!("the results of {} and {} differ: {why}", variant.name, other.name))
}

#[cfg(test)]
mod tests {
    use super::is_worth_trying;

    #[test]
    fn what_cannot_be_the_fastest_is_not_tried() {
        let tries = |estimate, ran: &[(f64, f64)]| is_worth_trying(estimate, ran, false);
        assert!(tries(1e9, &[]), "something must be the first");
        assert!(tries(4.0, &[(1.0, 1e-3)]));
        assert!(!tries(4.1, &[(1.0, 1e-3)]));
        assert!(is_worth_trying(9.0, &[(1.0, 1e-3)], true), "results are compared with its own");
        let slow_units = [(1.0, 8e-3), (8.0, 4e-3)];
        assert!(tries(32.0, &slow_units), "others may do as well beside their estimates");
        assert!(!tries(33.0, &slow_units));
        assert!(tries(1.9, &[(1.0, 0.5)]));
        assert!(!is_worth_trying(2.1, &[(1.0, 0.5)], true), "a second is too long");
        assert!(!tries(16.0, &[(1.0, 0.2), (8.0, 0.4)]), "3.2 s if it does as the first");
    }
}
