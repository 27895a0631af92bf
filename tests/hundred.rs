//! A hundred pictures in one process: neither the host nor the device is left with more than after the first few.
//!
//! The memory of a process is that of all it ever did, so every device gets a process of its own: this program again,
//! told by an environment variable which device is meant.

use std::process::Command;

use mobilediffusion_model::{DeviceChoice, Floats, Flow, Options, Pipeline, Request, Source};
use mobilediffusion_tests::devices;
use rayon::prelude::*;

/// Names the device of a child process: `cpu`, or an adapter.
const DEVICE: &str = "A_HUNDRED_PICTURES_ON";

/// Pictures before the first look at the memory.
const WARM: usize = 10;
/// Pictures between two looks, and how often.
const STRETCH: usize = 25;
const STRETCHES: usize = 4;

/// What allocators may keep back in a stretch.
const SLACK: u64 = 2 << 20;

#[test]
fn a_hundred_pictures_leave_nothing_behind() {
    if let Ok(device) = std::env::var(DEVICE) {
        return draw_a_hundred(&device);
    }
    devices().into_par_iter().with_max_len(1).for_each(|device| {
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
    let options = Options { device: choice, floats: Floats::F32, ..Options::default() };
    let mut pipeline = Pipeline::load(source, options).expect("the bundled model loads");
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
        assert_eq!(draw_some(STRETCH), made, "something was made for a later picture");
        memory.push(resident());
    }
    // A leak grows in every stretch. What a driver's threads touch for the first time, late and once, does not.
    let grown = memory.windows(2).map(|looks| Some(looks[1]?.saturating_sub(looks[0]?)));
    if let Some(least) = grown.min().flatten() {
        assert!(least < SLACK, "{memory:?} bytes, each after {STRETCH} pictures more");
    }
}

/// Bytes of this process in memory.
fn resident() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(4096 * pages)
}
