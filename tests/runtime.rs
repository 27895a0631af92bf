//! Promises of the runtime, on every adapter: failures come back as errors that name what failed, and the process goes
//! on.

#[path = "runtime/losses.rs"]
mod losses;
#[path = "runtime/pipelines.rs"]
mod pipelines;

use mobilediffusion_runtime::{
    Binding, Bound, Buffer, Dispatch, Gpu, POISON, Pipeline, Role, RuntimeError, Select, Timer,
};
use mobilediffusion_tests::gpu::{self, Test, fresh};
use mobilediffusion_tests::say;
use std::sync::Arc;
use std::time::Instant;

/// Test of one promise, with its name.
type Promise = (&'static str, fn(&Arc<Gpu>));

/// Shader that adds one to every element, `times` times.
const COUNT: &str = "
struct Params { len: u32, times: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.len { return; }
    var value = x[id.x];
    for (var i = 0u; i < params.times; i++) { value = (value ^ i) + 1u; value = (value - 1u) ^ i; value += 1u; }
    y[id.x] = value;
}
";
const BINDINGS: [Binding; 3] = [Binding::Uniform, Binding::Read, Binding::Write];

/// Buffers and dispatches that add to `len` elements: `there` writes from `x` to `y`, `back` from `y` to `x`.
struct Count {
    x: Buffer,
    staging: Buffer,
    there: Dispatch,
    back: Dispatch,
}

impl Count {
    fn new(gpu: &Gpu, len: u32, times: u32) -> Result<Self, RuntimeError> {
        Self::of(gpu, gpu.pipeline("count", COUNT, &BINDINGS)?, [len, times])
    }

    fn of(gpu: &Gpu, pipeline: Arc<Pipeline>, [len, times]: [u32; 2]) -> Result<Self, RuntimeError> {
        let params = gpu.buffer("params", 8, Role::Uniform)?;
        gpu.upload(&params, &[len.to_le_bytes(), times.to_le_bytes()].concat())?;
        let buffer = |label| gpu.buffer(label, 4 * u64::from(len), Role::Storage);
        let (x, y) = (buffer("x")?, buffer("y")?);
        let dispatch = |from, to| {
            let bound = [Bound::whole(&params), Bound::whole(from), Bound::whole(to)];
            gpu.dispatch("count", &pipeline, &bound, [len.div_ceil(64), 1, 1])
        };
        let (there, back) = (dispatch(&x, &y)?, dispatch(&y, &x)?);
        let staging = gpu.buffer("staging", x.bytes(), Role::Staging)?;
        Ok(Self { x, staging, there, back })
    }

    fn read(&self, gpu: &Gpu) -> Result<Vec<u32>, RuntimeError> {
        Ok(words(&gpu.download(&self.x, &self.staging)?))
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Adds two to `values` on the device.
fn add_two(gpu: &Gpu, values: &[u32]) -> Result<Vec<u32>, RuntimeError> {
    let count = Count::new(gpu, u32::try_from(values.len()).expect("a few values"), 1)?;
    gpu.upload(&count.x, bytemuck::cast_slice(values))?;
    gpu.submit([&count.there, &count.back])?;
    count.read(gpu)
}

/// Asserts that the device still computes correctly.
#[track_caller]
fn assert_works(gpu: &Gpu) {
    assert_eq!(add_two(gpu, &[1, 2]), Ok(vec![3, 4]), "the device adds two");
}

fn a_list_runs_in_order(gpu: &Arc<Gpu>) {
    let values: Vec<u32> = (0..1000).collect();
    assert_eq!(add_two(gpu, &values), Ok((2..1002).collect()), "a large problem");
    let count = Count::new(gpu, 300, 1).expect("there is room");
    gpu.upload(&count.x, &[0; 1200]).expect("it fits");
    gpu.submit([&count.there, &count.back].into_iter().cycle().take(100)).expect("the list runs");
    assert_eq!(count.read(gpu), Ok(vec![100; 300]), "each step takes what the one before wrote");
}

fn free_memory_is_known_or_not(gpu: &Arc<Gpu>) {
    let free = gpu.free_memory();
    say(&format!("{}: {free:?} bytes free", gpu.adapter()));
    assert!(free.is_none() || gpu.adapter().backend == "vulkan", "only Vulkan says how much is free");
    assert!(free.is_none_or(|bytes| (1 << 20..1 << 50).contains(&bytes)), "{free:?} bytes");
}

fn large_uploads_arrive_whole(gpu: &Arc<Gpu>) {
    // Longer than one upload chunk of 8 MiB, and not a multiple of it.
    let values: Vec<u32> = (0..(9 << 20) + 3).collect();
    let buffer = gpu.buffer("x", 4 * values.len() as u64, Role::Storage).expect("there is room");
    gpu.upload(&buffer, bytemuck::cast_slice(&values)).expect("the upload succeeds");
    let staging = gpu.buffer("staging", buffer.bytes(), Role::Staging).expect("there is room");
    let back = gpu.download(&buffer, &staging).expect("the download succeeds");
    assert!(bytemuck::cast_slice::<u8, u32>(&back) == values, "the values come back");
    gpu.poison(&buffer).expect("it is poisoned");
    let back = gpu.download(&buffer, &staging).expect("the download succeeds");
    assert!(words(&back).iter().all(|word| *word == POISON), "every word is poison");
    assert!(f32::from_bits(POISON).is_nan(), "poison is no number");
}

fn a_download_arrives_while_others_wait(gpu: &Arc<Gpu>) {
    let count = Count::new(gpu, 64, 1).expect("there is room");
    gpu.upload(&count.x, &[0; 256]).expect("it fits");
    gpu.submit([&count.there, &count.back]).expect("the list runs");
    let start = || gpu.start_download(&count.x, &count.staging).expect("it starts");
    drop(start());
    let download = start();
    let bytes = std::thread::scope(|scope| {
        scope.spawn(|| gpu.wait().expect("the device finishes"));
        pollster::block_on(download.bytes())
    });
    assert_eq!(bytes.map(|bytes| words(&bytes)), Ok(vec![2; 64]), "the bytes arrive");
    assert_eq!(count.read(gpu), Ok(vec![2; 64]), "the staging buffer is free again");
}

fn a_copy_does_not_leave_its_part(gpu: &Arc<Gpu>) {
    let buffer = |label, bytes| gpu.buffer(label, bytes, Role::Storage).expect("there is room");
    let (from, to) = (buffer("from", 64), buffer("to", 64));
    let refused = gpu.copy(&from, Bound::prefix(&to, 16)).expect_err("64 bytes are more than 16");
    assert!(matches!(refused, RuntimeError::TooLarge { bytes: 64, allowed: 16, .. }), "{refused}");
    // Lengths that no buffer has do not wrap around to short ones.
    let staging = gpu.buffer("staging", 64, Role::Staging).expect("there is room");
    for bytes in [u64::MAX, u64::MAX - 3] {
        let refused = gpu.copy(Bound::prefix(&from, bytes), &to).expect_err("no buffer is as long");
        assert!(matches!(refused, RuntimeError::TooLarge { allowed: 64, .. }), "{bytes} bytes: {refused}");
        let refused = gpu.download(Bound::prefix(&from, bytes), &staging).expect_err("no buffer is as long");
        assert!(matches!(refused, RuntimeError::TooLarge { allowed: 64, .. }), "{bytes} bytes: {refused}");
        let refused = gpu.copy(Bound::prefix(&from, bytes), Bound::prefix(&to, bytes)).expect_err("nor as this");
        let known = matches!(refused, RuntimeError::TooLarge { .. } | RuntimeError::Validation { .. });
        assert!(known, "{bytes} bytes: {refused}");
    }
}

fn a_submission_belongs_to_its_device(gpu: &Arc<Gpu>) {
    let other = Arc::new(fresh(gpu));
    let count = Count::new(&other, 64, 1).expect("there is room");
    other.upload(&count.x, &[0; 256]).expect("it fits");
    let submissions = [(); 50].map(|()| other.start([&count.there, &count.back]).expect("the list runs"));
    for submission in [&submissions[0], &submissions[49]] {
        for refused in [gpu.wait_for(submission), pollster::block_on(gpu.finished_for(submission))] {
            let refused = refused.expect_err("another device made it").to_string();
            assert!(refused.contains("another device"), "{refused}");
        }
        other.wait_for(submission).expect("it is its own");
    }
    assert_works(gpu);
    assert_works(&other);
}

fn the_callers_iterator_is_the_callers(gpu: &Arc<Gpu>) {
    let gpu = fresh(gpu);
    let count = Count::new(&gpu, 64, 1).expect("there is room");
    gpu.upload(&count.x, &[0; 256]).expect("it fits");
    // It may use the device, and its panics are not those of the device.
    let busy = [&count.there].into_iter().inspect(|_| gpu.submit([&count.there, &count.back]).expect("the list runs"));
    gpu.submit(busy).expect("the list runs");
    gpu.submit([&count.back]).expect("the list runs");
    assert_eq!(count.read(&gpu), Ok(vec![4; 64]), "two submissions, one after the other");
    let broken = [&count.there].into_iter().inspect(|_| std::panic::resume_unwind(Box::new("the caller's mistake")));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| gpu.submit(broken)));
    assert!(caught.is_err(), "the caller's panic was swallowed");
    assert_works(&gpu);
}

fn what_does_not_fit_is_refused_with_both_numbers(gpu: &Arc<Gpu>) {
    let caps = gpu.caps();
    // A buffer for read-backs has four bytes more, for the count of passes.
    let limits = [(Role::Storage, caps.max_binding_bytes, 0), (Role::Staging, caps.max_buffer_bytes, 4)];
    for (role, allowed, behind) in limits {
        let beyond = allowed / 4 * 4 + 4 - behind;
        let rounded = (beyond + behind, allowed);
        for (asked, numbers) in [(beyond, rounded), (beyond - 1, rounded)] {
            let error = gpu.buffer("huge", asked, role).expect_err("it is beyond the limit");
            let both = matches!(error, RuntimeError::TooLarge { bytes, allowed, .. } if (bytes, allowed) == numbers);
            assert!(both, "{asked} bytes of {role:?}: {error}");
        }
    }
    for role in [Role::Storage, Role::Arena, Role::Uniform, Role::Staging, Role::Timestamps] {
        for asked in [u64::MAX, u64::MAX - 3, u64::MAX - 4, u64::MAX - 7] {
            let error = gpu.buffer("endless", asked, role).expect_err("no memory is as large");
            assert!(matches!(error, RuntimeError::TooLarge { .. }), "{asked} bytes of {role:?}: {error}");
        }
    }
    let small = gpu.buffer("small", 8, Role::Storage).expect("there is room");
    let error = gpu.upload(&small, &[0; 12]).expect_err("twelve bytes do not fit into eight");
    assert_eq!(error.to_string(), "`small`: 12 bytes exceed the destination of 8 bytes", "both numbers are there");
    let pipeline = gpu.pipeline("count", COUNT, &BINDINGS).expect("the shader is right");
    let grid = [1, caps.max_groups + 1, 1];
    let error = gpu.dispatch("tall", &pipeline, &[], grid).expect_err("the grid is too large").to_string();
    let words = format!(
        "`tall` needs {} workgroups along one axis, but the adapter allows at most {}",
        grid[1], caps.max_groups
    );
    assert_eq!(error, words, "both numbers are there");
    let many = vec![Binding::Read; caps.max_storage_buffers as usize + 1];
    let error = gpu.pipeline("wide", COUNT, &many).expect_err("there are too many bindings").to_string();
    let words = format!(
        "`wide` needs {} storage buffers, but the adapter allows at most {}",
        many.len(),
        caps.max_storage_buffers
    );
    assert_eq!(error, words, "both numbers are there");
    let crowded = COUNT.replace("size(64)", "size(64, 64)");
    let error = gpu.pipeline("crowded", &crowded, &BINDINGS).expect_err("there are 4096 invocations").to_string();
    assert!(error.contains("4096") && error.contains(&caps.max_invocations.to_string()), "{error}");
    assert_works(gpu);
}

fn a_binding_that_does_not_fit_is_an_error(gpu: &Arc<Gpu>) {
    let pipeline = gpu.pipeline("count", COUNT, &BINDINGS).expect("the shader is right");
    let buffer = gpu.buffer("only one", 16, Role::Storage).expect("there is room");
    let error = gpu.dispatch("count", &pipeline, &[Bound::whole(&buffer)], [1, 1, 1]);
    let error = error.expect_err("two operands are missing").to_string();
    assert_eq!(error, "`count` was refused: expected 3 operands, found 1", "both numbers are named");
    let small = [Bound::whole(&buffer), Bound::whole(&buffer), Bound::prefix(&buffer, 2)];
    let error = gpu.dispatch("count", &pipeline, &small, [1, 1, 1]);
    assert!(matches!(error, Err(RuntimeError::Validation { ref what, .. }) if what == "count"), "{error:?}");
    let none = [Bound::whole(&buffer), Bound::prefix(&buffer, 0), Bound::whole(&buffer)];
    let error = gpu.dispatch("count", &pipeline, &none, [1, 1, 1]).expect_err("it would be all of it").to_string();
    assert!(error.ends_with("the range of `only one` that is bound is empty"), "{error}");
    let staging = gpu.buffer("staging", 8, Role::Staging).expect("there is room");
    let error = gpu.download(&buffer, &staging);
    let both =
        matches!(error, Err(RuntimeError::TooLarge { ref what, bytes: 16, allowed: 8, .. }) if what == "staging");
    assert!(both, "{error:?}");
}

fn an_absent_binding_takes_no_operand(gpu: &Arc<Gpu>) {
    let (text, bindings) = (COUNT.replace("binding(2)", "binding(4)"), [BINDINGS[0], BINDINGS[1], Binding::Absent]);
    let bindings = [&bindings[..], &[Binding::Absent, BINDINGS[2]]].concat();
    let pipeline = gpu.pipeline("apart", &text, &bindings).expect("the shader is right");
    let count = Count::of(gpu, pipeline, [2, 1]).expect("three operands are bound");
    gpu.upload(&count.x, bytemuck::cast_slice(&[1, 2])).expect("it fits");
    gpu.submit([&count.there, &count.back]).expect("the list runs");
    assert_eq!(count.read(gpu), Ok(vec![3, 4]), "the operands are at their bindings");
}

fn times_are_taken(gpu: &Arc<Gpu>) {
    let zeros = || {
        let count = Count::new(gpu, 64, 10_000).expect("there is room");
        gpu.upload(&count.x, &[0; 256]).expect("it fits");
        count
    };
    let Count { there, back, .. } = zeros();
    let timer = Timer::new(gpu).expect("there is room for a timer");
    // More than the timer takes in one submission.
    let start = Instant::now();
    let seconds = timer.time_in_turn(&[there.then(back)], 40).expect("the list is timed");
    let elapsed = start.elapsed().as_secs_f64();
    assert_eq!(seconds.len(), 40, "one for each repetition");
    let all: f64 = seconds.iter().sum();
    assert!(all <= 1.05 * elapsed, "{all} s by {} within {elapsed} s: {seconds:?}", timer.clock());
    assert!(seconds.iter().all(|s| (0.0..60.0).contains(s)), "{seconds:?}");
    assert!(seconds.iter().sum::<f64>() > 0.0, "{} saw no time pass", timer.clock());
    // One after the other: there, back, there, back, there.
    let Count { x, staging, there, back } = zeros();
    let seconds = timer.time_in_turn(&[there, back], 5).expect("they are timed");
    assert_eq!(seconds.len(), 5, "one for each pass");
    let last = words(&gpu.download(Bound::prefix(&x, 4), &staging).expect("it arrives"));
    assert_eq!(last, [40_000], "each adds ten thousand, and four of them had come back");
}

fn an_adapter_that_is_not_there_is_named_with_what_is(gpu: &Arc<Gpu>) {
    let error = pollster::block_on(Gpu::open(&Select::Named("no such adapter".into()))).expect_err("there is none");
    assert!(matches!(error, RuntimeError::NoAdapter { .. }), "{error}");
    let (error, name) = (error.to_string(), &gpu.adapter().name);
    assert!(error.contains("no such adapter") && error.contains(name.as_str()), "{error}");
}

fn main() {
    const TESTS: &[Promise] = &[
        ("a_list_runs_in_order", a_list_runs_in_order),
        ("free_memory_is_known_or_not", free_memory_is_known_or_not),
        ("large_uploads_arrive_whole", large_uploads_arrive_whole),
        ("a_download_arrives_while_others_wait", a_download_arrives_while_others_wait),
        ("a_copy_does_not_leave_its_part", a_copy_does_not_leave_its_part),
        ("a_submission_belongs_to_its_device", a_submission_belongs_to_its_device),
        ("the_callers_iterator_is_the_callers", the_callers_iterator_is_the_callers),
        ("what_does_not_fit_is_refused_with_both_numbers", what_does_not_fit_is_refused_with_both_numbers),
        ("a_binding_that_does_not_fit_is_an_error", a_binding_that_does_not_fit_is_an_error),
        ("an_absent_binding_takes_no_operand", an_absent_binding_takes_no_operand),
        ("times_are_taken", times_are_taken),
        ("an_adapter_that_is_not_there_is_named_with_what_is", an_adapter_that_is_not_there_is_named_with_what_is),
    ];
    let tests = [TESTS, pipelines::TESTS, losses::TESTS].concat();
    let boxed = |promise: &Promise| {
        let (name, test) = *promise;
        Test::new(name, move |gpu| {
            test(&gpu);
            Ok(())
        })
    };
    gpu::main(|_| tests.iter().map(boxed).collect());
}
