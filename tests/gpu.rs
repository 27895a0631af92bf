//! Tests that need a device: run on every adapter of this machine, and reported as ignored where there is none.

use crate::say;
pub use libtest_mimic::Failed;
use libtest_mimic::{Arguments, Trial};
use mobilediffusion_kernels::runner;
pub use mobilediffusion_kernels::runner::storages;
use mobilediffusion_kernels::{Case, Storage};
use mobilediffusion_runtime::{Gpu, Select, adapters};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tests that take longer than this say so.
const LONG: Duration = Duration::from_secs(5);

/// A name, and what to run on a device.
pub type Test = (String, Box<dyn Fn(Arc<Gpu>) -> Result<(), Failed> + Send>);

/// The `main` of a test binary: makes the tests of every adapter and runs them as `cargo test` asks, each on a device of its
/// own: software drivers compile for a device one shader at a time. Without an adapter it makes those of none, and reports
/// them as ignored.
#[expect(clippy::print_stdout, reason = "a test's output says what it ran on, as CI wants to know")]
pub fn main(tests: impl Fn(Option<&Gpu>) -> Vec<Test>) {
    let arguments = Arguments::from_args();
    let found = pollster::block_on(adapters());
    let mut trials = Vec::new();
    for adapter in &found {
        if !arguments.list {
            println!("adapter [{}] {adapter}", adapter.index);
        }
        let gpu = pollster::block_on(Gpu::open(&Select::Same(adapter.clone()))).expect("a listed adapter opens");
        let gpu = Arc::new(gpu);
        for (name, test) in tests(Some(&gpu)) {
            let gpu = Arc::clone(&gpu);
            let name = format!("{name} on adapter {}", adapter.index);
            trials.push(Trial::test(name.clone(), move || timed(&name, || test(Arc::new(fresh(&gpu))))));
        }
    }
    if found.is_empty() {
        let ignored = |(name, _)| Trial::test(name, || Ok(())).with_ignored_flag(true);
        trials.extend(tests(None).into_iter().map(ignored));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Runs a test, and says how long it took if that was long: where the time of a whole run goes.
fn timed<T>(name: &str, test: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = test();
    let took = start.elapsed();
    if took > LONG {
        say(&format!("{name} took {:.1} s", took.as_secs_f64()));
    }
    result
}

/// Rounds inputs to what the device will hold, so that the reference sees the same numbers.
pub fn stored(case: &Case, storage: Storage, inputs: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    runner::stored(case.kernel.as_ref(), storage, inputs)
}

/// Another device on the same adapter, with shaders watched as they run.
pub fn checked(gpu: &Gpu) -> Gpu {
    pollster::block_on(Gpu::open_checked(&Select::Same(gpu.adapter().clone()))).expect("the adapter opens again")
}

/// Another device on the same adapter.
pub fn fresh(gpu: &Gpu) -> Gpu {
    pollster::block_on(Gpu::open(&Select::Same(gpu.adapter().clone()))).expect("the adapter opens again")
}
