//! Helpers of the cross-crate tests: running one case of a kernel, and failure messages that say how to repeat it.

pub mod checkpoints;
pub mod gpu;
pub mod made_up;
pub mod program;
pub mod random;

use mobilediffusion_kernels::check::{self, Agreement};
use mobilediffusion_kernels::{Case, Tolerance, runner};
use mobilediffusion_model::DeviceChoice;
use mobilediffusion_runtime::{AdapterKind, AdapterSummary, adapters};

/// Prints a line into a test's output.
#[expect(clippy::print_stdout, reason = "figures and tables are part of what some tests are for")]
pub fn say(text: &str) {
    println!("{text}");
}

/// Returns the devices that pipelines are tested on: the CPU, every hardware adapter by its index, and one software
/// driver. Software drivers compile and draw for minutes, and tests of kernels and plans cover their differences.
pub fn devices() -> Vec<DeviceChoice> {
    let (software, hardware): (Vec<_>, Vec<_>) =
        pollster::block_on(adapters()).into_iter().partition(|adapter| adapter.kind == AdapterKind::Software);
    let one = software.into_iter().max_by_key(|adapter| (adapter.caps.shader_f16, std::cmp::Reverse(adapter.index)));
    let named = |adapter: AdapterSummary| DeviceChoice::Named(adapter.index.to_string());
    std::iter::once(DeviceChoice::Cpu).chain(hardware.into_iter().chain(one).map(named)).collect()
}

/// Returns the peak signal-to-noise ratio of two RGBA pictures in dB, over their colours without alpha.
///
/// # Panics
/// If the pictures are of different lengths.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len(), "bytes of a picture");
    let colours = |bytes: &[u8]| bytes.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect::<Vec<_>>();
    let (a, b) = (colours(a), colours(b));
    let squares: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    // Equal pictures get a finite ratio.
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares.max(1e-9)).log10()
}

/// Compares the outputs of a case with the reference.
///
/// # Errors
/// Returns a text that names the kernel, the case, the operand, the seed and the first wrong element.
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
