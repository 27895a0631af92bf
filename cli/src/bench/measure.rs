//! Measures one shape of one kernel: runs it once, warms the device up, times it, and checks the first result.

use super::Effort;
use mobilediffusion_kernels::fenced::{self, Fenced};
use mobilediffusion_kernels::kernel::split;
use mobilediffusion_kernels::runner::{self, RunError, judge, stored, tolerance};
use mobilediffusion_kernels::variant::{Machine, choose};
use mobilediffusion_kernels::{Case, Device, GpuDevice, Variant, WeightType, check, sample};
use mobilediffusion_runtime::{AdapterKind, Dispatch, Gpu, Role, RuntimeError, Timer};
use std::time::Instant;

/// Seed of the operands' values.
pub(super) const SEED: u64 = 1;

/// GPU to measure on, and how long to measure.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) device: GpuDevice<'a>,
    pub(super) timer: &'a Timer<'a>,
    pub(super) effort: Effort,
}

/// Measurement of one shape.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Time of every run in seconds, ascending.
    pub(crate) seconds: Vec<f64>,
    /// Description of the error if the result was wrong.
    pub(crate) wrong: Option<String>,
    /// Variant of the kernel; `None` on the CPU.
    pub(crate) variant: Option<Variant>,
}

/// Checks and times one shape.
pub(crate) fn shape(
    device: &Device,
    timer: Option<&Timer<'_>>,
    case: &Case,
    effort: Effort,
) -> Result<Measured, RunError> {
    let kernel = case.kernel.as_ref();
    let inputs = stored(kernel, device.storage(), sample::inputs(case, SEED));
    let mut outputs = sample::outputs(case);
    let mut taken = None;
    let (seconds, wrong) = match (device.gpu(), timer) {
        (Some(on), Some(timer)) => {
            let variant = choose(kernel, &Machine::of(on));
            taken = Some(variant);
            let Timed { seconds, outputs: got } = time(Subject { device: on, timer, effort }, case, &variant, &inputs)?;
            sample::run(case, &sample::packed(case, WeightType::Floats, inputs), &mut outputs);
            let (_, written) = split(kernel);
            let wide: Vec<Vec<f64>> =
                written.iter().zip(&outputs).map(|(o, values)| check::to_f64(o, values)).collect();
            let allowed = tolerance(case, device.storage(), &variant).doubled();
            let verdict = judge(kernel, &got, &wide, allowed);
            let wrong = verdict.failure.map(|failure| format!("{kernel:?} against the CPU form: {failure}"));
            (seconds, wrong)
        }
        _ => {
            let packed = sample::packed(case, device.storage().weights, inputs);
            let mut timed = || {
                let start = Instant::now();
                sample::run(case, &packed, &mut outputs);
                start.elapsed().as_secs_f64()
            };
            timed();
            let runs = runs(timed(), effort);
            (ascending((0..runs).map(|_| timed()).collect()), None)
        }
    };
    Ok(Measured { seconds, wrong, variant: taken })
}

/// Runs of a variant on a GPU.
pub(super) struct Timed {
    /// Seconds of each run but the first, ascending.
    pub(super) seconds: Vec<f64>,
    /// Outputs of the first run.
    pub(super) outputs: Vec<Vec<f32>>,
}

/// Runs a variant once, which also tells how many runs there is time for, and then times it.
pub(super) fn time(on: Subject<'_>, case: &Case, variant: &Variant, inputs: &[Vec<f32>]) -> Result<Timed, RunError> {
    let Subject { device, timer, effort } = on;
    let (dispatches, operands) = prepare(device, case, variant, inputs)?;
    let start = Instant::now();
    device.gpu.submit(dispatches.first())?;
    device.gpu.wait()?;
    let one = start.elapsed().as_secs_f64();
    let outputs = fenced::download(device, case.kernel.as_ref(), &operands)?;
    warm_up(timer, &dispatches, effort)?;
    let seconds = ascending(timer.time_in_turn(&dispatches, runs(one, effort))?);
    Ok(Timed { seconds, outputs })
}

fn ascending(mut seconds: Vec<f64>) -> Vec<f64> {
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// Returns the median of some times.
pub(super) fn median(seconds: Vec<f64>) -> f64 {
    let seconds = ascending(seconds);
    seconds[seconds.len() / 2]
}

/// Returns whether a shape failed only because the device has no memory for it.
pub(crate) fn is_too_large(error: &RunError) -> bool {
    matches!(error, RunError::Runtime(RuntimeError::TooLarge { .. } | RuntimeError::OutOfMemory { .. }))
}

/// Returns the number of runs that the effort allows if one takes `one` seconds: at least three, for a median.
fn runs(one: f64, effort: Effort) -> usize {
    ((effort.per_shape.as_secs_f64() / one.max(1e-9)) as usize).clamp(3, effort.runs)
}

/// Runs the dispatches for a time before they are timed, because an idle GPU has lowered its clocks. Skipped on software.
pub(super) fn warm_up(timer: &Timer<'_>, dispatches: &[Dispatch], effort: Effort) -> Result<(), RuntimeError> {
    let start = Instant::now();
    let mut repeats = 1;
    while !effort.software && start.elapsed() < effort.warm_up.min(effort.per_shape / 2) {
        timer.time_in_turn(dispatches, repeats)?;
        repeats = 32.min(2 * repeats);
    }
    Ok(())
}

/// Bytes of weights that a round of runs reads, more than caches hold.
const COLD_BYTES: u64 = 96 << 20;
/// Largest number of copies of the weights, where they are small.
const COPIES: u64 = 512;

/// Returns how many copies are made of so many bytes of weights.
fn copies(gpu: &Gpu, bytes: u64) -> u64 {
    // On a software driver cold weights make little difference, and copies take memory.
    let most = if gpu.adapter().kind == AdapterKind::Software { 2 } else { COPIES };
    COLD_BYTES.checked_div(bytes).map_or(1, |copies| (copies + 1).clamp(1, most))
}

/// Uploads the operands of a variant, and returns its dispatch once for each copy of its weights, and its operands.
///
/// The dispatches take turns, so that each run reads its weights from memory. In a network weights come from memory
/// too, because all other weights were read since their last use. Activations are not copied: the step before has just
/// written them.
fn prepare(
    device: GpuDevice<'_>,
    case: &Case,
    variant: &Variant,
    inputs: &[Vec<f32>],
) -> Result<(Vec<Dispatch>, Vec<Fenced>), RunError> {
    let kernel = case.kernel.as_ref();
    let operands = fenced::upload(device, kernel, inputs)?;
    let shared = fenced::shared(device, kernel, variant)?;
    let gpu = device.gpu;
    let is_weight = |fenced: &Fenced| fenced.operand.dtype.is_weight();
    let weight_bytes = operands.iter().filter(|fenced| is_weight(fenced)).map(|fenced| fenced.buffer.bytes()).sum();
    let mut dispatches = Vec::new();
    for copy in 0..copies(gpu, weight_bytes) {
        let mut of_copy = operands.clone();
        for fenced in of_copy.iter_mut().filter(|fenced| copy > 0 && is_weight(fenced)) {
            let own = gpu.buffer(fenced.buffer.label(), fenced.buffer.bytes(), Role::Storage)?;
            gpu.copy(&fenced.buffer, &own)?;
            fenced.buffer = own;
        }
        dispatches.push(runner::dispatch(device, kernel, variant, &of_copy, shared.as_ref())?);
    }
    Ok((dispatches, operands))
}
