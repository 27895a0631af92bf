//! Runner: runs one problem of a kernel on the CPU or a GPU and judges the result. Tests and the command `check` use
//! it.
//!
//! Outputs are filled with poison and lie between poisoned fences, so that elements that were not written and writes
//! out of bounds are found. On a GPU the padding of rows must be zero afterwards.

use crate::casefile::CaseFile;
use crate::check::{self, Agreement, Mismatch, POISON};
use crate::device::{Device, GpuDevice};
use crate::fenced::{self, Fenced};
use crate::kernel::{Case, DType, Kernel, Operand, Param, Stage, Tolerance, has_weights, split};
use crate::variant::{Machine, Variant, choose, runnable};
use crate::{FloatType, Storage, WeightType, wgsl};
use mobilediffusion_runtime::shader::ComposeError;
use mobilediffusion_runtime::{Bound, Dispatch, Gpu, Role, RuntimeError};

/// Number of poisoned elements on each side of an output of a CPU form.
const FENCE: usize = 16;

/// Errors of a run that gave no result to judge.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The kernel's shader does not compose.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// The device reported an error.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The kernel wrote outside an output's bounds.
    #[error("{kernel}: `{operand}` was written outside its bounds")]
    Outside {
        /// Kernel with its sizes, and the storage on a GPU.
        kernel: String,
        /// Name of the output.
        operand: &'static str,
    },
    /// The kernel left values that are not zero in the padding of an output.
    #[error("{kernel}: `{operand}` has padding that is not zero")]
    Padding {
        /// Kernel with its sizes, and the storage on a GPU.
        kernel: String,
        /// Name of the output.
        operand: &'static str,
    },
}

/// Result of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Worst distance over all outputs. NaN if an element is NaN or the length of an output is wrong.
    pub agreement: Agreement,
    /// Tolerance that was applied.
    pub tolerance: Tolerance,
    /// Description of the first output that does not pass, with its first wrong element. `None` if all outputs pass.
    pub failure: Option<String>,
}

/// Returns the storage types of floats that a device supports.
pub fn storages(gpu: &Gpu) -> Vec<Storage> {
    let native = gpu.caps().shader_f16.then_some(Storage::F16);
    [Storage::F32, Storage::F16_PACKED].into_iter().chain(native).collect()
}

/// Returns the tolerance of a case that runs by `variant`, with tensors stored as `storage`. It is that of the kernel,
/// or none for an exact case. Int8 weights are multiples of a scale and not whole numbers, so that exact cases get the
/// kernel's tolerance too.
pub fn tolerance(case: &Case, storage: Storage, variant: &Variant) -> Tolerance {
    let whole = storage.weights != WeightType::Int8 || !has_weights(case.kernel.as_ref());
    let own = if case.exact && whole { Tolerance::EXACT } else { case.kernel.tolerance() };
    widened(own, case, storage, variant)
}

/// Adds the errors of storing outputs and of rounding factors to a tolerance.
fn widened(mut tolerance: Tolerance, case: &Case, storage: Storage, variant: &Variant) -> Tolerance {
    // Each factor that is rounded to f16 is off by up to 2^-11, and by less than half of that on average. Where terms
    // have either sign, a sum is then off by about 2^-12 of the root mean square of such sums.
    if variant.rounds && !case.exact {
        tolerance.rounding = 2.0_f64.powi(-9);
    }
    let (_, written) = split(case.kernel.as_ref());
    // In f16, an output is off by at most half a unit of rounding, 2^-11 of the value.
    if storage.floats != FloatType::F32 && written.iter().any(|o| o.dtype == DType::Elem) {
        tolerance.relative += 2.0_f64.powi(-11);
    }
    tolerance
}

/// Rounds inputs to the values that a device holds with `storage`, so that the reference computes with the same
/// numbers. Weights of which a device holds sums become weights whose sums it holds exactly.
pub fn stored(kernel: &dyn Kernel, storage: Storage, inputs: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let (read, _) = split(kernel);
    let round = |(o, values): (&Operand, Vec<f32>)| match o.dtype {
        _ if values.is_empty() => values,
        DType::WeightSum => check::with_exact_sums(storage, &o.shape, values),
        dtype => storage.rounded(dtype, &o.shape, values),
    };
    read.iter().zip(inputs).map(round).collect()
}

/// Returns the variant by which a device runs a kernel. CPU forms have none, and are held to the tolerance of one that
/// rounds nothing.
fn chosen(device: &Device, kernel: &dyn Kernel) -> Variant {
    device.gpu().map_or(Variant::ONLY, |on| choose(kernel, &Machine::of(on)))
}

/// Runs a problem by a variant on the device. Inputs and outputs are those of [`run_cpu`].
fn run(
    device: &Device,
    kernel: &dyn Kernel,
    variant: &Variant,
    inputs: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>, RunError> {
    match *device {
        Device::Cpu(weights) => run_cpu(kernel, weights, inputs),
        Device::Gpu(ref gpu, storage) => run_variant(GpuDevice { gpu, storage }, kernel, variant, inputs),
    }
}

/// Compares outputs with the expected values. Integers are compared exactly.
pub fn judge(kernel: &dyn Kernel, outputs: &[Vec<f32>], expected: &[Vec<f64>], tolerance: Tolerance) -> Verdict {
    let (_, written) = split(kernel);
    let mut verdict = Verdict { agreement: Agreement::default(), tolerance, failure: None };
    let (count, found, wanted) = (written.len(), outputs.len(), expected.len());
    if [found, wanted] != [count; 2] {
        verdict.agreement = Agreement { max_abs: f64::NAN, relative_l2: f64::NAN };
        verdict.failure = Some(format!("{found} outputs and {wanted} expected ones, expected {count} of each"));
    }
    for ((operand, got), want) in written.iter().zip(outputs).zip(expected) {
        let tolerance = if operand.dtype == DType::U32 { Tolerance::EXACT } else { tolerance };
        let agreement =
            check::compare(&check::to_f64(operand, got), want, &operand.shape, tolerance).unwrap_or_else(|mismatch| {
                verdict.failure.get_or_insert(format!("`{}`: {mismatch}", operand.name));
                match mismatch {
                    Mismatch::Values { agreement, .. } => agreement,
                    Mismatch::Length { .. } => Agreement { max_abs: f64::NAN, relative_l2: f64::NAN },
                }
            });
        // `f64::max` would drop a NaN.
        let worse = |a: f64, b: f64| if a.is_nan() || b <= a { a } else { b };
        verdict.agreement.max_abs = worse(verdict.agreement.max_abs, agreement.max_abs);
        verdict.agreement.relative_l2 = worse(verdict.agreement.relative_l2, agreement.relative_l2);
    }
    verdict
}

/// Runs a built-in case on operands made from `seed` and judges it by the kernel's reference.
///
/// # Errors
/// If the device reports an error, or the kernel wrote out of bounds or left padding that is not zero.
pub fn check_case(device: &Device, case: &Case, seed: u64) -> Result<Verdict, RunError> {
    let kernel = case.kernel.as_ref();
    let inputs = stored(kernel, device.storage(), check::inputs(case, seed));
    let variant = chosen(device, kernel);
    let outputs = run(device, kernel, &variant, &inputs)?;
    Ok(judge(kernel, &outputs, &check::expected(case, &inputs), tolerance(case, device.storage(), &variant)))
}

/// Runs [`check_case`] on a GPU with every variant that the device can run, in the kernel's order.
pub fn check_variants(device: GpuDevice<'_>, case: &Case, seed: u64) -> Vec<(Variant, Result<Verdict, RunError>)> {
    let kernel = case.kernel.as_ref();
    let inputs = stored(kernel, device.storage, check::inputs(case, seed));
    let expected = check::expected(case, &inputs);
    let check = |variant: Variant| {
        let tolerance = tolerance(case, device.storage, &variant);
        let outputs = run_variant(device, kernel, &variant, &inputs);
        (variant, outputs.map(|outputs| judge(kernel, &outputs, &expected, tolerance)))
    };
    runnable(kernel, device.gpu.caps(), device.storage).into_iter().map(check).collect()
}

/// Runs a case file and judges the outputs by the file's expected values.
///
/// Where the storage rounds the operands, the expected values are moved by as much as the rounding moves the reference.
/// The rounding is then not counted as an error of the kernel.
///
/// # Errors
/// Returns the same errors as [`check_case`].
pub fn check_file(device: &Device, file: &CaseFile) -> Result<Verdict, RunError> {
    let (case, storage) = (&file.case, device.storage());
    let kernel = case.kernel.as_ref();
    let variant = chosen(device, kernel);
    let tolerance = widened(file.tolerance.unwrap_or_else(|| kernel.tolerance()), case, storage, &variant);
    let mut expected = file.expected_f64();
    let rounded = stored(kernel, storage, file.inputs.clone());
    if rounded != file.inputs {
        let moved = check::expected(case, &rounded).into_iter().zip(check::expected(case, &file.inputs));
        for (expected, (after, before)) in expected.iter_mut().zip(moved) {
            for ((value, after), before) in expected.iter_mut().zip(after).zip(before) {
                // Where the reference is not finite, only the file knows what is right.
                *value += if after.is_finite() && before.is_finite() { after - before } else { 0.0 };
            }
        }
    }
    Ok(judge(kernel, &run(device, kernel, &variant, &rounded)?, &expected, tolerance))
}

/// Runs the CPU form of a kernel on `inputs` (dense, in PyTorch's orientation) and returns the outputs, dense. Matrices
/// of weights are stored as `weights`.
///
/// # Errors
/// If the kernel wrote out of bounds.
pub fn run_cpu(kernel: &dyn Kernel, weights: WeightType, inputs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, RunError> {
    let (read, written) = split(kernel);
    let pairs = read.iter().zip(inputs);
    let packed: Vec<Vec<f32>> = pairs.map(|(o, values)| o.pack_for_cpu(weights, values.clone())).collect();
    let fenced = |o: &Operand| vec![f32::from_bits(POISON); o.host_len() + 2 * FENCE];
    let mut outputs: Vec<Vec<f32>> = written.iter().map(fenced).collect();
    {
        let pairs = outputs.iter_mut().zip(&written);
        let mut inner: Vec<&mut [f32]> = pairs.map(|(all, o)| &mut all[FENCE..FENCE + o.host_len()]).collect();
        kernel.cpu(&packed.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut inner);
    }
    let inside = |(all, operand): (Vec<f32>, &Operand)| {
        let end = FENCE + operand.host_len();
        if all[..FENCE].iter().chain(&all[end..]).all(|v| v.to_bits() == POISON) {
            Ok(all[FENCE..end].to_vec())
        } else {
            Err(RunError::Outside { kernel: format!("{kernel:?}"), operand: operand.name })
        }
    };
    outputs.into_iter().zip(&written).map(inside).collect()
}

/// Runs one variant of a kernel on a GPU. Inputs and outputs are those of [`run_cpu`].
///
/// # Errors
/// Returns the same errors as [`check_case`].
pub fn run_variant(
    device: GpuDevice<'_>,
    kernel: &dyn Kernel,
    variant: &Variant,
    inputs: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>, RunError> {
    let operands = fenced::upload(device, kernel, inputs)?;
    let shared = fenced::shared(device, kernel, variant)?;
    device.gpu.submit([&dispatch(device, kernel, variant, &operands, shared.as_ref())?])?;
    let outputs = fenced::download(device, kernel, &operands)?;
    shared.iter().try_for_each(|shared| shared.check(device.gpu, || format!("{kernel:?} {}", device.storage)))?;
    Ok(outputs)
}

/// Prepares the dispatch of all stages of a variant. `operands` are those from [`fenced::upload`], and `shared` is the
/// memory from [`fenced::shared`], if the stages need it.
///
/// # Errors
/// Returns the same errors as [`check_case`].
pub fn dispatch(
    GpuDevice { gpu, storage }: GpuDevice<'_>,
    kernel: &dyn Kernel,
    variant: &Variant,
    operands: &[Fenced],
    shared: Option<&Fenced>,
) -> Result<Dispatch, RunError> {
    let stage = |stage: &Stage| {
        let program = &stage.program;
        let text = wgsl::compose(stage, storage)?;
        let pipeline = gpu.pipeline(kernel.name(), &text, &stage.bindings())?;
        let params: Vec<u8> = program.params.iter().flat_map(Param::bytes).collect();
        let uniform = gpu.buffer("params", params.len() as u64, Role::Uniform)?;
        gpu.upload(&uniform, &params)?;
        let find = |operand: &Operand| operands.iter().chain(shared).find(|fenced| fenced.operand.name == operand.name);
        let present = stage.operands.iter().filter(|operand| operand.present).filter_map(find).map(Fenced::bound);
        let bound: Vec<Bound<'_>> = std::iter::once(Bound::whole(&uniform)).chain(present).collect();
        Ok::<_, RunError>(gpu.dispatch(kernel.name(), &pipeline, &bound, program.grid)?)
    };
    let stages = kernel.stages(variant);
    let (first, others) = stages.split_first().expect("a kernel has at least one stage");
    others.iter().try_fold(stage(first)?, |all, next| Ok(all.then(stage(next)?)))
}

#[cfg(test)]
mod tests;
