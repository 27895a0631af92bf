//! Measures one shape of one kernel: checks the result once, warms the device up, then times it.

use super::Effort;
use crate::Failure;
use mobilediffusion_kernels::runner::{self, Device, RunError, device_tolerance, judge, stored};
use mobilediffusion_kernels::variant::{Machine, choose};
use mobilediffusion_kernels::{Access, Case, DType, Operand, Storage, Variant, WeightType, sample};
use mobilediffusion_runtime::{AdapterKind, Bound, Buffer, Dispatch, Gpu, Role, RuntimeError, Timer};
use std::time::{Duration, Instant};

/// Seed of the operands' values.
pub(super) const SEED: u64 = 1;

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
pub(crate) fn shape(device: &Device, timer: Option<&Timer>, case: &Case, effort: Effort) -> Result<Measured, Failure> {
    let kernel = case.kernel.as_ref();
    let inputs = stored(kernel, device.storage(), sample::inputs(case, SEED));
    let mut outputs = sample::outputs(case);
    let mut taken = None;
    let (mut seconds, wrong) = match (device, timer) {
        (&Device::Gpu(ref gpu, storage), Some(timer)) => {
            let variant = choose(kernel, &Machine::of(gpu, storage));
            taken = Some(variant);
            let (dispatches, written) = prepare((gpu, storage), case, &variant, &inputs)?;
            // The first run also tells how many runs there is time for.
            let one = Instant::now();
            gpu.submit(dispatches.first())?;
            gpu.wait()?;
            let runs = runs(one.elapsed().as_secs_f64(), effort);
            let got = read((gpu, storage), &written)?;
            sample::run(case, &sample::packed(case, WeightType::Floats, inputs), &mut outputs);
            let wide: Vec<Vec<f64>> = written
                .iter()
                .zip(&outputs)
                .map(|((operand, _), values)| mobilediffusion_kernels::check::to_f64(operand, values))
                .collect();
            // Each of the two forms may be off by the tolerance, in opposite directions.
            let mut allowed = device_tolerance(case, device);
            allowed.absolute *= 2.0;
            allowed.relative *= 2.0;
            let verdict = judge(kernel, &got, &wide, allowed);
            let wrong = verdict.failure.map(|failure| format!("{kernel:?} against the CPU form: {failure}"));
            warm_up((gpu, timer), &dispatches, effort)?;
            (timer.time_in_turn(gpu, &dispatches, runs)?, wrong)
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
            ((0..runs).map(|_| timed()).collect(), None)
        }
    };
    seconds.sort_by(f64::total_cmp);
    Ok(Measured { seconds, wrong, variant: taken })
}

/// Returns whether a shape failed only because the device has no memory for it.
pub(crate) fn is_too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    let too_large =
        |error: &RuntimeError| matches!(error, RuntimeError::TooLarge { .. } | RuntimeError::OutOfMemory { .. });
    let of_a_run = || match error.downcast_ref::<RunError>() {
        Some(RunError::Runtime(error)) => too_large(error),
        _ => false,
    };
    error.downcast_ref::<RuntimeError>().is_some_and(too_large) || of_a_run()
}

/// Returns the number of runs that the effort allows if one takes `one` seconds: at least three, for a median.
pub(super) fn runs(one: f64, effort: Effort) -> usize {
    ((effort.per_shape.as_secs_f64() / one.max(1e-9)) as usize).clamp(3, effort.runs)
}

/// Runs the dispatches for up to 0.1 s before timing, because an idle GPU has lowered its clocks. Skipped on software.
pub(super) fn warm_up(
    (gpu, timer): (&Gpu, &Timer),
    dispatches: &[Dispatch],
    effort: Effort,
) -> Result<(), RuntimeError> {
    const LONG: Duration = Duration::from_millis(100);
    let start = Instant::now();
    while !effort.software && start.elapsed() < LONG.min(effort.per_shape / 2) {
        timer.time_in_turn(gpu, dispatches, 32)?;
    }
    Ok(())
}

/// Output operands of a kernel with their buffers.
pub(super) type Written = Vec<(Operand, Buffer)>;

/// Downloads the outputs as dense values; an operand that is left out gives none.
pub(super) fn read((gpu, storage): (&Gpu, Storage), written: &[(Operand, Buffer)]) -> Result<Vec<Vec<f32>>, Failure> {
    let one = |(operand, buffer): &(Operand, Buffer)| {
        if !operand.present {
            return Ok(Vec::new());
        }
        let staging = gpu.buffer("staging", buffer.bytes(), Role::Staging)?;
        let bytes = storage.tensor_bytes(operand.dtype, &operand.shape);
        let bytes = gpu.download(Bound::prefix(buffer, bytes.next_multiple_of(4) as u64), &staging)?;
        Ok(storage.decode(operand.dtype, &operand.shape, &bytes))
    };
    written.iter().map(one).collect()
}

/// Bytes of weights that a round of runs reads, more than caches hold.
const COLD_BYTES: u64 = 96 << 20;
/// Largest number of copies of the weights, where they are small.
const COPIES: u64 = 32;

/// Returns how many copies are made of so many bytes of weights.
fn copies(gpu: &Gpu, bytes: u64) -> u64 {
    // On a software driver cold weights make little difference, and copies take memory.
    let most = if gpu.adapter().kind == AdapterKind::Software { 2 } else { COPIES };
    COLD_BYTES.checked_div(bytes).map_or(1, |copies| (copies + 1).clamp(1, most))
}

/// Uploads the operands of a variant, and returns its dispatch once for each copy of its weights, and its outputs.
///
/// The dispatches take turns, so that each run reads its weights from memory. In a network weights come from memory
/// too, because all other weights were read since their last use. Activations are not copied: the step before has just
/// written them.
pub(super) fn prepare(
    (gpu, storage): (&Gpu, Storage),
    case: &Case,
    variant: &Variant,
    inputs: &[Vec<f32>],
) -> Result<(Vec<Dispatch>, Written), Failure> {
    let kernel = case.kernel.as_ref();
    let operands = kernel.operands();
    let (mut buffers, mut values) = (Vec::new(), inputs.iter());
    let mut weights = Vec::new();
    for operand in &operands {
        let shape = operand.layout.packed_shape(&operand.shape);
        let bytes = if operand.present { storage.tensor_bytes(operand.dtype, &shape) } else { 16 };
        let buffer = gpu.buffer(operand.name, bytes as u64, Role::Storage)?;
        if operand.access == Access::Read {
            let values = values.next().cloned().unwrap_or_default();
            if operand.present {
                let packed = operand.layout.pack(&operand.shape, values);
                let mut encoded = storage.encode(operand.dtype, &shape, &packed);
                encoded.resize(encoded.len().next_multiple_of(4), 0);
                gpu.upload(&buffer, &encoded)?;
                weights.extend((operand.dtype == DType::Weight).then_some(buffers.len()));
            }
        }
        buffers.push(buffer);
    }
    let shared = runner::shared((gpu, storage), kernel, variant)?;
    let mut dispatches = Vec::new();
    for copy in 0..copies(gpu, weights.iter().map(|at| buffers[*at].bytes()).sum()) {
        let mut of_copy = buffers.clone();
        for at in weights.iter().filter(|_| copy > 0) {
            let own = gpu.buffer(buffers[*at].label(), buffers[*at].bytes(), Role::Storage)?;
            gpu.copy(&buffers[*at], &own)?;
            of_copy[*at] = own;
        }
        let bound: Vec<Bound<'_>> = of_copy.iter().map(Bound::whole).collect();
        dispatches.push(runner::dispatch((gpu, storage), kernel, variant, &bound, shared.as_ref())?);
    }
    let written = operands.into_iter().zip(buffers).filter(|(operand, _)| operand.access == Access::Write).collect();
    Ok((dispatches, written))
}
