//! Tests that need a GPU. They run on every adapter of this machine, and are reported as ignored where there is none.

use crate::{adapters, say};
pub use libtest_mimic::Failed;
use libtest_mimic::{Arguments, Trial};
use mobilediffusion_kernels::runner;
pub use mobilediffusion_kernels::runner::storages;
use mobilediffusion_kernels::{Case, Storage};
use mobilediffusion_runtime::{Gpu, Select};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tests that take longer than this print their time, to show where the time of a whole run goes.
const LONG: Duration = Duration::from_secs(5);

/// Test that runs on a device of its own.
pub struct Test {
    name: String,
    run: Box<dyn Fn(Arc<Gpu>) -> Result<(), Failed> + Send>,
    ignored: bool,
}

impl Test {
    /// Creates a test from its name and what to run.
    pub fn new(name: impl Into<String>, run: impl Fn(Arc<Gpu>) -> Result<(), Failed> + Send + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run), ignored: false }
    }

    /// Reports the test as ignored instead of running it, if `ignored` is set: for adapters on which it has no meaning.
    #[must_use]
    pub fn ignored_if(self, ignored: bool) -> Self {
        Self { ignored: self.ignored || ignored, ..self }
    }
}

/// Runs the tests of a binary as `cargo test` asks, as its `main`.
///
/// `tests` makes the tests of an adapter. Each runs on a device of its own, because software drivers compile one shader
/// at a time for each device. Without an adapter `tests(None)` makes the tests, which are all reported as ignored.
///
/// # Panics
/// If an adapter does not open.
#[expect(clippy::print_stdout, reason = "a test's output says what it ran on, as CI wants to know")]
pub fn main(tests: impl Fn(Option<&Gpu>) -> Vec<Test>) {
    let arguments = Arguments::from_args();
    let found = adapters();
    let mut trials = Vec::new();
    for adapter in &found {
        if !arguments.list {
            println!("adapter [{}] {adapter}", adapter.index);
        }
        let gpu = pollster::block_on(Gpu::open(&Select::Same(adapter.clone()))).expect("a listed adapter opens");
        let gpu = Arc::new(gpu);
        for Test { name, run, ignored } in tests(Some(&gpu)) {
            let (name, gpu) = (format!("{name} on adapter {}", adapter.index), Arc::clone(&gpu));
            let test = Trial::test(name.clone(), move || timed(&name, || run(Arc::new(fresh(&gpu)))));
            trials.push(test.with_ignored_flag(ignored));
        }
    }
    if found.is_empty() {
        let ignored = |test: Test| Trial::test(test.name, || Ok(())).with_ignored_flag(true);
        trials.extend(tests(None).into_iter().map(ignored));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Runs a test, and prints how long it took if that was longer than [`LONG`].
fn timed<T>(name: &str, test: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = test();
    let took = start.elapsed();
    if took > LONG {
        say(&format!("{name} took {:.1} s", took.as_secs_f64()));
    }
    result
}

/// Rounds inputs to the values that the device will store, so that the reference computes with the same numbers.
pub fn stored(case: &Case, storage: Storage, inputs: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    runner::stored(case.kernel.as_ref(), storage, inputs)
}

/// Opens another device on the same adapter, with shaders checked as they run.
///
/// # Panics
/// If it does not open.
pub fn checked(gpu: &Gpu) -> Gpu {
    pollster::block_on(Gpu::open_checked(&Select::Same(gpu.adapter().clone()))).expect("the adapter opens again")
}

/// Opens another device on the same adapter.
///
/// # Panics
/// If it does not open.
pub fn fresh(gpu: &Gpu) -> Gpu {
    pollster::block_on(Gpu::open(&Select::Same(gpu.adapter().clone()))).expect("the adapter opens again")
}
