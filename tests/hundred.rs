//! A hundred pictures in one process: neither the host nor the device is left with more than after the first few.
//!
//! A program of its own, because the memory of a process is that of all its tests.

use mobilediffusion_model::{DeviceChoice, Flow, Options, Pipeline, Request, Source};
use mobilediffusion_runtime::adapters;

/// Bytes of this process in memory.
fn resident() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(4096 * pages)
}

/// What allocators may keep back and threads may touch for the first time.
const SLACK: u64 = 8 << 20;

#[test]
fn a_hundred_pictures_leave_nothing_behind() {
    let gpu = pollster::block_on(adapters()).first().map(|_| DeviceChoice::Gpu);
    for device in std::iter::once(DeviceChoice::Cpu).chain(gpu) {
        let source = Source::bundled().expect("the checkpoint is in the repository");
        let options = Options { device: device.clone(), ..Options::default() };
        let mut pipeline = Pipeline::load(source, options).expect("the bundled model loads");
        let mut draw = |seed| {
            let request = Request { width: Some(32), height: Some(32), seed, ..Request::new("sun") };
            pipeline.generate(&request, &mut |_| Flow::Continue).expect("it draws");
            pipeline.counters()
        };
        let made = (0..10).map(&mut draw).last();
        let before = resident();
        let still = (10..110).map(&mut draw).last();
        assert_eq!(still, made, "{device:?}: something was made for the hundredth picture");
        if let (Some(before), Some(after)) = (before, resident()) {
            assert!(after < before + SLACK, "{device:?}: {before} bytes before, {after} after a hundred pictures");
        }
    }
}
