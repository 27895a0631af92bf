//! Running one case of a kernel on a device.

pub use mobilediffusion_kernels::runner::storages;
use mobilediffusion_kernels::runner::{self, Target};
use mobilediffusion_kernels::{Case, Storage};
use mobilediffusion_runtime::Gpu;

/// Rounds inputs to what the device will hold, so that the reference sees the same numbers.
pub fn stored(case: &Case, storage: Storage, inputs: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    runner::stored(case.kernel.as_ref(), storage, inputs)
}

/// Runs a case on `inputs` (dense, PyTorch's orientation) and returns what was written, dense.
///
/// # Errors
/// If the device refuses anything, or a kernel wrote outside its outputs or left padding that is not zero.
pub fn run_gpu(gpu: &Gpu, storage: Storage, case: &Case, inputs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, String> {
    runner::run(Target::Gpu(gpu, storage), case.kernel.as_ref(), inputs).map_err(|error| error.to_string())
}
