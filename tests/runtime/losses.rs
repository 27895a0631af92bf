//! Lost devices, memory that runs out, and the order in which objects are dropped.

use super::{BINDINGS, COUNT, Count, Promise, assert_works, fresh};
use mobilediffusion_runtime::{Bound, Gpu, Role, RuntimeError};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const TESTS: &[Promise] = &[
    ("a_lost_device_refuses_everything_and_is_made_again", a_lost_device_refuses_everything_and_is_made_again),
    ("a_device_lost_during_a_run_is_an_error", a_device_lost_during_a_run_is_an_error),
    ("a_pass_that_was_not_carried_out_is_a_lost_device", a_pass_that_was_not_carried_out_is_a_lost_device),
    ("a_panic_below_is_a_lost_device", a_panic_below_is_a_lost_device),
    ("an_error_of_another_call_is_not_lost_in_compiling", an_error_of_another_call_is_not_lost_in_compiling),
    ("memory_that_runs_out_is_an_error", memory_that_runs_out_is_an_error),
    ("things_are_dropped_in_any_order", things_are_dropped_in_any_order),
];

#[track_caller]
fn assert_lost<T: std::fmt::Debug>(result: Result<T, RuntimeError>) {
    assert!(matches!(result, Err(RuntimeError::Lost { .. })), "{result:?}");
}

fn a_lost_device_refuses_everything_and_is_made_again(gpu: &Arc<Gpu>) {
    let gpu = fresh(gpu);
    let count = Count::new(&gpu, 64, 1).expect("there is room");
    let pipeline = gpu.pipeline("count", COUNT, &BINDINGS).expect("it compiles");
    let pending = gpu.start_download(&count.x, &count.staging).expect("it starts");
    gpu.destroy();
    assert_lost(gpu.buffer("x", 16, Role::Storage));
    assert_lost(gpu.upload(&count.x, &[0; 256]));
    assert_lost(gpu.pipeline("other", &COUNT.replace("64", "32"), &BINDINGS));
    assert_lost(gpu.dispatch("count", &pipeline, &[Bound::whole(&count.x)], [1, 1, 1]));
    assert_lost(gpu.submit([&count.there]));
    assert_lost(count.read(&gpu));
    assert_lost(gpu.wait());
    drop(pending);
    let again = pollster::block_on(gpu.recreate()).expect("the adapter opens again");
    assert_eq!(again.adapter(), gpu.adapter(), "the same adapter");
    // The new device refuses objects of the old one.
    let error = again.upload(&count.x, &[0; 4]);
    assert!(matches!(error, Err(RuntimeError::Validation { .. })), "{error:?}");
    // What is refused is not counted as a pass, so the device is not taken for lost.
    let error = again.submit([&count.there]);
    assert!(matches!(error, Err(RuntimeError::Validation { .. })), "{error:?}");
    let fresh = Count::new(&again, 64, 1).expect("there is room");
    let aside = Bound { offset: 2, bytes: 64, ..Bound::whole(&fresh.x) };
    let error = again.download(aside, &fresh.staging);
    assert!(matches!(error, Err(RuntimeError::Validation { .. })), "{error:?}");
    drop((gpu, count, pipeline));
    assert_works(&again);
}

fn a_device_lost_during_a_run_is_an_error(gpu: &Arc<Gpu>) {
    let gpu = fresh(gpu);
    let count = Count::new(&gpu, 4096, 20_000).expect("there is room");
    gpu.upload(&count.x, &[0; 4 * 4096]).expect("it fits");
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| {
            // Far more submissions than can finish before the device is destroyed.
            for _ in 0..1_000_000 {
                gpu.submit([&count.there, &count.back])?;
                gpu.wait()?;
            }
            count.read(&gpu)
        });
        std::thread::sleep(Duration::from_millis(50));
        gpu.destroy();
        assert_lost(runs.join().expect("the thread does not panic"));
    });
    let again = pollster::block_on(gpu.recreate()).expect("the adapter opens again");
    assert_works(&again);
}

fn a_pass_that_was_not_carried_out_is_a_lost_device(gpu: &Arc<Gpu>) {
    let gpu = fresh(gpu);
    let count = Count::new(&gpu, 64, 1).expect("there is room");
    gpu.upload(&count.x, &[0; 256]).expect("it fits");
    gpu.submit([&count.there, &count.back]).expect("the list runs");
    assert_eq!(count.read(&gpu), Ok(vec![2; 64]), "nothing is missing");
    gpu.forget_a_pass();
    assert_lost(count.read(&gpu));
    assert_lost(gpu.submit([&count.there]));
    assert_works(&pollster::block_on(gpu.recreate()).expect("the adapter opens again"));
}

fn a_panic_below_is_a_lost_device(gpu: &Arc<Gpu>) {
    let gpu = fresh(gpu);
    let count = Count::new(&gpu, 64, 1).expect("there is room");
    // wgpu panics on some failures of drivers, which a test cannot provoke.
    let error = gpu.break_down("a driver's failure").expect_err("the panic is caught").to_string();
    let expected = "the device was lost: wgpu panicked at `a call that breaks down`: a driver's failure";
    assert_eq!(error, expected, "the message holds what wgpu said");
    assert_lost(gpu.submit([&count.there]));
    assert_works(&fresh(&gpu));
}

fn an_error_of_another_call_is_not_lost_in_compiling(gpu: &Arc<Gpu>) {
    let gpu = fresh(gpu);
    gpu.complain("a copy went wrong");
    // A thread that compiles ahead drops its errors, so it must not be given this one.
    let compiled = std::thread::scope(|scope| scope.spawn(|| gpu.pipeline("count", COUNT, &BINDINGS).map(drop)).join());
    assert_eq!(compiled.expect("the thread does not panic"), Ok(()), "nothing is wrong with the shader");
    let error = gpu.wait().expect_err("the error is reported");
    assert!(matches!(&error, RuntimeError::Validation { message, .. } if message == "a copy went wrong"), "{error}");
    assert_works(&gpu);
}

fn memory_that_runs_out_is_an_error(gpu: &Arc<Gpu>) {
    // A driver may grant more memory than there is, because pages that are never touched cost nothing. So the test
    // stops at this many bytes.
    const MOST: u64 = 16 << 30;
    let gpu = fresh(gpu);
    let bytes = gpu.caps().max_buffer_bytes / 4 * 4;
    let mut all = Vec::new();
    let starved = (0..MOST / bytes).find_map(|_| match gpu.buffer("one of many", bytes, Role::Arena) {
        Ok(buffer) => (all.push(buffer), None).1,
        Err(error) => Some(error),
    });
    if let Some(error) = starved {
        assert_eq!(
            error,
            RuntimeError::OutOfMemory { what: "one of many".to_owned(), bytes: Some(bytes) },
            "and no other error"
        );
    }
    drop(all);
    gpu.wait().expect("the device goes on");
    assert_works(&gpu);
}

fn things_are_dropped_in_any_order(gpu: &Arc<Gpu>) {
    let make = || {
        let gpu = fresh(gpu);
        let count = Count::new(&gpu, 4096, 1000).expect("there is room");
        gpu.upload(&count.x, &[0; 4 * 4096]).expect("it fits");
        gpu.submit([&count.there, &count.back]).expect("the list runs");
        let download = gpu.start_download(&count.x, &count.staging).expect("it starts");
        (gpu, count, download)
    };
    // First the device is dropped before its buffers, while it is still at work.
    let (gpu, count, download) = make();
    drop(gpu);
    drop(count);
    drop(download);
    let (gpu, Count { x, staging, there, back }, download) = make();
    drop((staging, x, there));
    gpu.wait().expect("the work is done all the same");
    drop(download);
    drop(gpu);
    drop(back);
}
