//! Helpers of the cross-crate tests: running one case of a kernel and saying what went wrong in a way that can be
//! repeated.

pub mod gpu;
pub mod made_up;
pub mod program;
pub mod random;

use mobilediffusion_kernels::check::{self, Agreement};
use mobilediffusion_kernels::{Case, Tolerance, runner};
use mobilediffusion_model::DeviceChoice;
use mobilediffusion_runtime::{AdapterKind, AdapterSummary, adapters};

/// Tells the reader of a test's output something.
#[expect(clippy::print_stdout, reason = "figures and tables are part of what some tests are for")]
pub fn say(text: &str) {
    println!("{text}");
}

/// What the facade is tested on: the CPU device and every adapter by its index, but of software drivers only one. They
/// compile and draw for minutes, and what tells them apart is tested by kernels and plans.
pub fn devices() -> Vec<DeviceChoice> {
    let (software, hardware): (Vec<_>, Vec<_>) =
        pollster::block_on(adapters()).into_iter().partition(|adapter| adapter.kind == AdapterKind::Software);
    let one = software.into_iter().max_by_key(|adapter| (adapter.caps.shader_f16, std::cmp::Reverse(adapter.index)));
    let named = |adapter: AdapterSummary| DeviceChoice::Named(adapter.index.to_string());
    std::iter::once(DeviceChoice::Cpu).chain(hardware.into_iter().chain(one).map(named)).collect()
}

/// Compares results with the reference.
///
/// # Errors
/// A text that names the kernel, the case, the operand, the seed and the first wrong element.
pub fn judge(
    case: &Case,
    seed: u64,
    inputs: &[Vec<f32>],
    outputs: &[Vec<f32>],
    tolerance: Tolerance,
) -> Result<Agreement, String> {
    let verdict = runner::judge(case.kernel.as_ref(), outputs, &check::expected(case, inputs), tolerance);
    match verdict.failure {
        Some(failure) => Err(format!("{:?} seed {seed}: {failure}", case.kernel)),
        None => Ok(verdict.agreement),
    }
}
