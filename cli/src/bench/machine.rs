//! Description of what a measurement was made on: device, driver, storage types, clock and commit.

use mobilediffusion_kernels::Device;
use mobilediffusion_runtime::{Gpu, RefusedMatrix, Timer};
use std::process::Command;

/// Returns the lines of a measurement's header as pairs of name and text.
pub(crate) fn describe(device: &Device, timer: Option<&Timer<'_>>) -> Vec<(&'static str, String)> {
    let mut lines = match device {
        Device::Cpu(_) => {
            let name = cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
            vec![("device", format!("CPU, {name}, {} threads", rayon::current_num_threads()))]
        }
        Device::Gpu(gpu, _) => {
            let adapter = gpu.adapter();
            let device = format!("{} ({}, {})", adapter.name, adapter.kind, adapter.backend);
            let units = adapter.units.map_or_else(|| "unknown".to_owned(), |units| units.to_string());
            let driver = adapter.driver.clone();
            vec![("device", device), ("driver", driver), ("units", units), ("matrix units", matrices(gpu))]
        }
    };
    lines.push(("storage", device.storage().to_string().to_lowercase()));
    lines.push(("clock", timer.map_or("wall clock", Timer::clock).to_owned()));
    lines.extend(commit().map(|commit| ("commit", commit)));
    lines
}

/// Returns the matrix units that a device uses, and those that it lists and does not use.
fn matrices(gpu: &Gpu) -> String {
    let used = gpu.caps().matrices.iter().map(ToString::to_string);
    let refused = gpu.refused_matrices().iter().map(|RefusedMatrix { shape, reason }| format!("not {shape}: {reason}"));
    let all: Vec<String> = used.chain(refused).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// Reads the processor's name from `/proc/cpuinfo`, where there is one.
fn cpu_name() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns the commit of the build if `MOBILEDIFFUSION_COMMIT` named one, else that of the current folder's repository.
fn commit() -> Option<String> {
    if let Some(built) = option_env!("MOBILEDIFFUSION_COMMIT") {
        return Some(built.to_owned());
    }
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| format!("{text} (of the current folder)"))
}
