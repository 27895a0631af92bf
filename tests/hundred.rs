//! A hundred pictures in one process: neither the host nor the device is left with more than after the first few.
//!
//! The memory of a process is that of all it ever did, so every device gets a process of its own: this program again,
//! told by an environment variable which device is meant.

use std::process::Command;

use mobilediffusion_model::{DeviceChoice, Flow, Options, Pipeline, Request, Source};
use mobilediffusion_runtime::adapters;

/// Names the device of a child process: `cpu`, or an adapter.
const DEVICE: &str = "A_HUNDRED_PICTURES_ON";

/// What allocators may keep back and threads may touch for the first time.
const SLACK: u64 = 8 << 20;

#[test]
fn a_hundred_pictures_leave_nothing_behind() {
    if let Ok(device) = std::env::var(DEVICE) {
        return draw_a_hundred(&device);
    }
    let adapters = pollster::block_on(adapters()).into_iter().map(|adapter| adapter.name);
    for device in std::iter::once("cpu".to_owned()).chain(adapters) {
        let program = std::env::current_exe().expect("a test has a path");
        let run = Command::new(program).env(DEVICE, &device).arg("--nocapture").output().expect("it starts");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{device}: {said}");
    }
}

fn draw_a_hundred(device: &str) {
    let choice = if device == "cpu" { DeviceChoice::Cpu } else { DeviceChoice::Named(device.to_owned()) };
    let source = Source::bundled().expect("the checkpoint is in the repository");
    let options = Options { device: choice, ..Options::default() };
    let mut pipeline = Pipeline::load(source, options).expect("the bundled model loads");
    let mut draw = |seed| {
        let request = Request { width: Some(32), height: Some(32), seed, ..Request::new("sun") };
        pipeline.generate(&request, &mut |_| Flow::Continue).expect("it draws");
        pipeline.counters()
    };
    let made = (0..10).map(&mut draw).last();
    let before = resident();
    let still = (10..110).map(&mut draw).last();
    assert_eq!(still, made, "something was made for the hundredth picture");
    if let (Some(before), Some(after)) = (before, resident()) {
        assert!(after < before + SLACK, "{before} bytes before, {after} after a hundred pictures");
    }
}

/// Bytes of this process in memory.
fn resident() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(4096 * pages)
}
