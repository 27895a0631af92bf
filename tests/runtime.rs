//! The runtime's promises on a device: what fails comes back as an error that names it, and the process goes on.
//!
//! Without an adapter these tests have nothing to run on; `tests/run` installs a software driver.

use mobilediffusion_runtime::{Binding, Bound, Gpu, Role, RuntimeError, Select};

const COPY: &str = "
struct Params { len: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < params.len { y[id.x] = x[id.x] + 1u; }
}
";
const BINDINGS: [Binding; 3] = [Binding::Uniform, Binding::Read, Binding::Write];

fn open() -> Gpu {
    pollster::block_on(Gpu::open(&Select::Best)).expect("a software driver at least is installed")
}

/// Adds one to `values` on the device.
fn add_one(gpu: &Gpu, values: &[u32]) -> Result<Vec<u32>, RuntimeError> {
    let bytes = size_of_val(values) as u64;
    let pipeline = gpu.pipeline("copy", COPY, &BINDINGS)?;
    let params = gpu.buffer("params", 4, Role::Uniform)?;
    let (x, y) = (gpu.buffer("x", bytes, Role::Storage)?, gpu.buffer("y", bytes, Role::Storage)?);
    gpu.upload(&params, &u32::try_from(values.len()).expect("a few values").to_le_bytes())?;
    gpu.upload(&x, bytemuck::cast_slice(values))?;
    let bound = [Bound::whole(&params), Bound::whole(&x), Bound::whole(&y)];
    let groups = u32::try_from(values.len().div_ceil(64)).expect("a few values");
    let dispatch = gpu.dispatch("copy", &pipeline, &bound, [groups, 1, 1])?;
    gpu.submit([&dispatch])?;
    let staging = gpu.buffer("staging", bytes, Role::Staging)?;
    Ok(bytemuck::cast_slice(&gpu.download(&y, &staging, bytes)?).to_vec())
}

#[test]
fn a_kernel_runs_and_its_pipeline_is_made_once() {
    let gpu = open();
    let values: Vec<u32> = (0..1000).collect();
    let want: Vec<u32> = (1..1001).collect();
    assert_eq!(add_one(&gpu, &values), Ok(want.clone()));
    let pipelines = gpu.counters().pipelines;
    assert_eq!(add_one(&gpu, &values), Ok(want));
    assert_eq!(gpu.counters().pipelines, pipelines, "the second run compiles nothing");
}

#[test]
fn large_uploads_arrive_whole() {
    let gpu = open();
    // Longer than one upload chunk of 32 MiB, and not a multiple of it.
    let values: Vec<u32> = (0..(9 << 20) + 3).collect();
    let buffer = gpu.buffer("x", 4 * values.len() as u64, Role::Storage).expect("there is room");
    gpu.upload(&buffer, bytemuck::cast_slice(&values)).expect("the upload succeeds");
    let staging = gpu.buffer("staging", buffer.bytes(), Role::Staging).expect("there is room");
    let back = gpu.download(&buffer, &staging, buffer.bytes()).expect("the download succeeds");
    assert!(bytemuck::cast_slice::<u8, u32>(&back) == values, "the values come back");
}

#[test]
fn a_wrong_shader_is_an_error_with_its_lines() {
    let gpu = open();
    let wrong = COPY.replace("x[id.x] + 1u", "no_such_name");
    let error = gpu.pipeline("copy", &wrong, &BINDINGS).expect_err("the name is unknown").to_string();
    assert!(error.contains("copy") && error.contains("no_such_name"), "{error}");
    assert!(add_one(&gpu, &[1]).is_ok(), "the device goes on");
}

#[test]
fn a_binding_that_does_not_fit_is_an_error() {
    let gpu = open();
    let pipeline = gpu.pipeline("copy", COPY, &BINDINGS).expect("the shader is right");
    let buffer = gpu.buffer("only one", 16, Role::Storage).expect("there is room");
    let error = gpu.dispatch("copy", &pipeline, &[Bound::whole(&buffer)], [1, 1, 1]);
    assert!(matches!(error, Err(RuntimeError::Validation { ref what, .. }) if what == "copy"), "{error:?}");
}

#[test]
fn sizes_beyond_the_limits_are_refused_with_both_numbers() {
    let gpu = open();
    let bytes = gpu.caps().max_binding_bytes + 4;
    let error = gpu.buffer("too large", bytes, Role::Storage).expect_err("it is beyond the limit");
    assert!(
        matches!(error, RuntimeError::TooLarge { bytes: b, allowed, .. } if b == bytes && allowed < bytes),
        "{error}"
    );
    let small = gpu.buffer("small", 8, Role::Storage).expect("there is room");
    let error = gpu.upload(&small, &[0; 12]).expect_err("twelve bytes do not fit into eight");
    assert_eq!(error.to_string(), "`small` needs 12 bytes, the buffer is 8");
}

#[test]
fn a_lost_device_is_an_error_and_a_new_one_can_be_opened() {
    let gpu = open();
    assert_eq!(add_one(&gpu, &[1, 2]), Ok(vec![2, 3]));
    gpu.destroy();
    let error = add_one(&gpu, &[1, 2]);
    assert!(matches!(error, Err(RuntimeError::Lost { .. })), "{error:?}");
    assert!(matches!(gpu.wait(), Err(RuntimeError::Lost { .. })), "waiting does not panic");
    drop(gpu);
    assert_eq!(add_one(&open(), &[1, 2]), Ok(vec![2, 3]));
}

#[test]
fn an_adapter_that_is_not_there_is_named_with_what_is() {
    let error = pollster::block_on(Gpu::open(&Select::Named("no such adapter".into()))).expect_err("there is none");
    assert!(matches!(error, RuntimeError::NoAdapter { .. }), "{error}");
    assert!(error.to_string().contains("no such adapter") && error.to_string().contains("found: "), "{error}");
}
