//! Draws a hundred pictures in one process, and checks that neither the process nor the device keeps more memory than
//! after the first few.
//!
//! A process keeps memory from all earlier work, so every device gets a process of its own: this program again, with an
//! environment variable that names the device.

use std::process::Command;

use mobilediffusion_model::{DeviceChoice, Flow, Pipeline, Request, Source};
use mobilediffusion_tests::{drawing_devices, on};
use rayon::prelude::*;

/// Environment variable that names the device of a child process: `cpu`, or an adapter's index.
const DEVICE: &str = "A_HUNDRED_PICTURES_ON";

/// Number of pictures before the first measurement of memory.
const WARM: usize = 10;
/// Number of pictures between two measurements.
const STRETCH: usize = 25;
/// Number of measurements after the first.
const STRETCHES: usize = 4;

/// Bytes by which allocators may grow between two measurements.
const SLACK: u64 = 2 << 20;

#[test]
fn a_hundred_pictures_leave_nothing_behind() {
    if let Ok(device) = std::env::var(DEVICE) {
        return draw_a_hundred(&device);
    }
    drawing_devices().into_par_iter().with_max_len(1).for_each(|device| {
        let device = if let DeviceChoice::Named(index) = device { index } else { "cpu".to_owned() };
        let program = std::env::current_exe().expect("a test has a path");
        let run = Command::new(program).env(DEVICE, &device).arg("--nocapture").output().expect("it starts");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{device}: {said}");
    });
}

fn draw_a_hundred(device: &str) {
    let choice = if device == "cpu" { DeviceChoice::Cpu } else { DeviceChoice::Named(device.to_owned()) };
    let source = Source::bundled().expect("the checkpoint is in the repository");
    let mut pipeline = Pipeline::load(source, on(choice)).expect("the bundled model loads");
    let mut draw = |seed| {
        let request = Request { width: Some(32), height: Some(32), seed, ..Request::new("sun") };
        pipeline.generate(&request, &mut |_| Flow::Continue).expect("it draws");
        pipeline.counters()
    };
    let mut seeds = 0..;
    let mut draw_some = |count| seeds.by_ref().take(count).map(&mut draw).last();
    let made = draw_some(WARM);
    let mut memory = vec![resident()];
    for _ in 0..STRETCHES {
        assert_eq!(draw_some(STRETCH), made, "a later picture created buffers or pipelines");
        memory.push(resident());
    }
    // A leak grows between any two measurements. Memory that a driver's threads touch for the first time grows only
    // once.
    let grown = memory.windows(2).map(|looks| Some(looks[1]?.saturating_sub(looks[0]?)));
    if let Some(least) = grown.min().flatten() {
        assert!(least < SLACK, "{memory:?} bytes, each after {STRETCH} pictures more");
    }
}

/// Returns the bytes of this process in memory, where `/proc` tells them.
fn resident() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(4096 * pages)
}
