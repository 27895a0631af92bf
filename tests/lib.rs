//! Helpers of the cross-crate tests: running one case of a kernel, and failure messages that say how to repeat it.

pub mod checkpoints;
pub mod gpu;
pub mod made_up;
pub mod program;
pub mod random;

use mobilediffusion_kernels::check::{self, Agreement};
use mobilediffusion_kernels::{Case, Tolerance, runner};
use mobilediffusion_model::{Cache, DeviceChoice, Floats, Options};
use mobilediffusion_runtime::{AdapterKind, AdapterSummary};
use std::path::PathBuf;
use tempfile::TempDir;

/// Prints a line into a test's output.
#[expect(clippy::print_stdout, reason = "figures and tables are part of what some tests are for")]
pub fn say(text: &str) {
    println!("{text}");
}

/// Returns the adapters of this machine.
///
/// # Panics
/// If there is none although the environment variable `EXPECT_GPU` is set. Many tests run on the CPU and on what else there
/// is: where drivers were installed for them, they must not pass without those.
pub fn adapters() -> Vec<AdapterSummary> {
    let found = pollster::block_on(mobilediffusion_runtime::adapters());
    assert!(
        !found.is_empty() || std::env::var_os("EXPECT_GPU").is_none(),
        "EXPECT_GPU is set, but no adapter is found"
    );
    found
}

/// Returns the devices that pipelines are tested on: the CPU, every hardware adapter by its index, and one software
/// driver. Software drivers compile and draw for minutes, and tests of kernels and plans cover their differences.
pub fn drawing_devices() -> Vec<DeviceChoice> {
    let (software, hardware): (Vec<_>, Vec<_>) =
        adapters().into_iter().partition(|adapter| adapter.kind == AdapterKind::Software);
    let one = software.into_iter().max_by_key(|adapter| (adapter.caps.shader_f16, std::cmp::Reverse(adapter.index)));
    let named = |adapter: AdapterSummary| DeviceChoice::Named(adapter.index.to_string());
    std::iter::once(DeviceChoice::Cpu).chain(hardware.into_iter().chain(one).map(named)).collect()
}

/// Returns options for a device, with floats in f32. Compiled kernels are kept in [`caches`] and not where the user's are.
pub fn on(device: DeviceChoice) -> Options {
    let cache = Cache::Folder(caches().join("mobilediffusion"));
    Options { device, floats: Floats::F32, cache, ..Options::default() }
}

/// Returns the folder that takes the place of the user's cache folder in tests: beside the programs that were built.
///
/// # Panics
/// If the test does not know where it lies.
pub fn caches() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it lies");
    test.with_file_name("caches-of-tests")
}

/// Makes a folder that is removed at the end.
///
/// # Panics
/// If it cannot be made.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("there is room for a temporary folder")
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
