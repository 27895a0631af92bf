//! Peak rates of a device, measured on it: multiply-adds in operations per second, beside copies and launches.

use super::copies::Copies;
use super::launch::Launch;
use super::{Effort, measure};
use crate::Failure;
use crate::terminal::{note, one_line};
use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::variant::MatrixUnit;
use mobilediffusion_kernels::{Case, DType, Linear, Storage, WeightType, sample};
use mobilediffusion_runtime::{AdapterKind, Binding, Bound, Dispatch, Role, RuntimeError, Timer};
use serde_json::{Value, json};
use std::fmt;
use std::time::Instant;

/// Shader of multiply-adds in eight independent chains of vectors, so that no addition waits for the one before.
/// Expects an alias `V` of the vector type before it.
const MULTIPLY_ADDS: &str = "
@group(0) @binding(0) var<uniform> factor: vec4<f32>;
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let start = V(vec4<f32>(f32(id.x & 7u)));
    let scale = V(factor);
    var a = start; var b = start + 1.0; var c = start + 2.0; var d = start + 3.0;
    var e = start + 4.0; var f = start + 5.0; var g = start + 6.0; var h = start + 7.0;
    for (var i = 0u; i < 512u; i++) {
        a = fma(a, scale, scale); b = fma(b, scale, scale); c = fma(c, scale, scale); d = fma(d, scale, scale);
        e = fma(e, scale, scale); f = fma(f, scale, scale); g = fma(g, scale, scale); h = fma(h, scale, scale);
    }
    sums[id.x] = vec4<f32>(a + b + c + d + e + f + g + h);
}
";

/// Floating-point operations of one invocation: two for each of four lanes of eight chains, 512 times.
const FLOPS_EACH: f64 = 2.0 * 4.0 * 8.0 * 512.0;

/// Shader of matrix products that stay in registers: eight chains in each of four subgroups. Expects the constants and
/// aliases of `gpu_matrix_flops` before it.
const MATRIX_PRODUCTS: &str = "
@group(0) @binding(0) var<storage, read> factors: array<f16>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(4 * SUBGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let x0 = coopLoadT<Left>(&factors[0], EDGE);
    let x1 = coopLoadT<Left>(&factors[EDGE], EDGE);
    let w0 = coopLoad<Right>(&factors[0], EDGE);
    let w1 = coopLoad<Right>(&factors[EDGE], EDGE);
    let w2 = coopLoad<Right>(&factors[2 * EDGE], EDGE);
    let w3 = coopLoad<Right>(&factors[3 * EDGE], EDGE);
    var a = Sum(); var b = Sum(); var c = Sum(); var d = Sum();
    var e = Sum(); var f = Sum(); var g = Sum(); var h = Sum();
    for (var i = 0u; i < 256u; i++) {
        a = coopMultiplyAdd(x0, w0, a); b = coopMultiplyAdd(x0, w1, b);
        c = coopMultiplyAdd(x0, w2, c); d = coopMultiplyAdd(x0, w3, d);
        e = coopMultiplyAdd(x1, w0, e); f = coopMultiplyAdd(x1, w1, f);
        g = coopMultiplyAdd(x1, w2, g); h = coopMultiplyAdd(x1, w3, h);
    }
    // Metal has no addition of matrices, so the chains are stored one by one; in few places, since nobody reads them.
    let place = 8u * (4u * (group.x % PLACES) + thread / SUBGROUP) * EDGE * EDGE;
    coopStoreT(a, &sums[place], EDGE); coopStoreT(b, &sums[place + EDGE * EDGE], EDGE);
    coopStoreT(c, &sums[place + 2 * EDGE * EDGE], EDGE); coopStoreT(d, &sums[place + 3 * EDGE * EDGE], EDGE);
    coopStoreT(e, &sums[place + 4 * EDGE * EDGE], EDGE); coopStoreT(f, &sums[place + 5 * EDGE * EDGE], EDGE);
    coopStoreT(g, &sums[place + 6 * EDGE * EDGE], EDGE); coopStoreT(h, &sums[place + 7 * EDGE * EDGE], EDGE);
}
";

/// Peak rates of a device, each the best of several runs, and what it takes for the least there is to do.
#[derive(Clone, Debug)]
pub(crate) struct Peaks {
    /// Times of copies.
    pub(crate) copies: Copies,
    /// Times of dispatches that compute next to nothing; `None` on the CPU.
    launch: Option<Launch>,
    /// Floating-point operations per second in f32; on the CPU those of this project's own matrix product.
    pub(crate) flops: f64,
    /// Floating-point operations per second of the matrix units, with factors in f16 and sums in f32; `None` if kernels
    /// do not use them.
    pub(crate) matrix_flops: Option<f64>,
    /// Floating-point operations per second in f16, where shaders can compute in it. No kernel is compared with this
    /// peak: kernels store in f16 but add up in f32.
    pub(crate) half_flops: Option<f64>,
    /// What was timed for `flops`, for the user.
    what: &'static str,
}

impl fmt::Display for Peaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (copy, flops) = (self.copies.rate() / 1e9, self.flops / 1e9);
        write!(f, "peaks: copies {copy:.1} GB/s, multiply-adds {flops:.1} GFLOP/s in f32{}", self.what)?;
        for (flops, what) in [(self.half_flops, "in f16"), (self.matrix_flops, "of matrix units")] {
            flops.map_or(Ok(()), |flops| write!(f, ", {:.1} GFLOP/s {what}", flops / 1e9))?;
        }
        write!(f, "\n{}", self.copies)?;
        self.launch.map_or(Ok(()), |launch| write!(f, "\n{launch}"))
    }
}

impl Peaks {
    /// Returns made-up peaks, for tests.
    #[cfg(test)]
    pub(super) fn of(copies: &[(u64, f64)], flops: f64, matrix_flops: Option<f64>) -> Self {
        Self { copies: Copies::of(copies), launch: None, flops, half_flops: None, matrix_flops, what: "" }
    }

    /// Measures all peaks of a device.
    pub(crate) fn measure(device: &Device, timer: Option<&Timer<'_>>, effort: Effort) -> Result<Self, Failure> {
        match (device, timer) {
            (Device::Gpu(gpu, _), Some(timer)) => {
                let unit = MatrixUnit::of(gpu.caps());
                let by_matrices = unit.map(|unit| gpu_matrix_flops(unit, timer, effort)).transpose();
                let matrix_flops = by_matrices.unwrap_or_else(|error| {
                    note(&format!("note: the peak of matrix units was not measured: {}", one_line(&error.to_string())));
                    None
                });
                let half = gpu.caps().shader_f16.then(|| gpu_flops(timer, effort, "enable f16; alias V = vec4<f16>;"));
                let flops = gpu_flops(timer, effort, "alias V = vec4<f32>;")?;
                Ok(Self {
                    copies: Copies::on_gpu(timer, effort)?,
                    launch: Some(Launch::measure(timer, effort)?),
                    flops,
                    half_flops: half.transpose()?,
                    matrix_flops,
                    what: "",
                })
            }
            _ => {
                // Not the processor's limit, so the percentages of kernels are to be read with care.
                let what = " (this project's own product of 1024x1024 matrices)";
                let (copies, flops) = (Copies::on_cpu(effort), cpu_flops());
                Ok(Self { copies, launch: None, flops, half_flops: None, matrix_flops: None, what })
            }
        }
    }

    /// Returns the peaks as JSON.
    pub(crate) fn json(&self) -> Value {
        json!({ "copy_bytes_per_second": self.copies.rate(), "copies": self.copies.json(),
            "launch": self.launch.map(|launch| launch.json()), "flops_per_second": self.flops,
            "half_flops_per_second": self.half_flops, "matrix_flops_per_second": self.matrix_flops })
    }
}

/// Returns the shortest of `runs` runs in seconds, after one to warm up.
pub(super) fn best<E>(runs: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    run()?;
    let mut shortest = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        run()?;
        shortest = shortest.min(start.elapsed().as_secs_f64());
    }
    Ok(shortest)
}

/// Measures the CPU's matrix product at 1024x1024x1024, the size at which it is fastest.
fn cpu_flops() -> f64 {
    const SIZE: usize = 1024;
    let case = Case::new(Linear { rows: SIZE, k: SIZE, cols: SIZE, ..Linear::default() });
    let (inputs, mut outputs) =
        (sample::packed(&case, WeightType::Floats, sample::inputs(&case, 0)), sample::outputs(&case));
    let multiply = || -> Result<(), std::convert::Infallible> {
        sample::run(&case, &inputs, &mut outputs);
        Ok(())
    };
    let Ok(seconds) = best(15, multiply);
    2.0 * (SIZE * SIZE * SIZE) as f64 / seconds
}

/// Returns the shortest of several runs of a dispatch in seconds.
pub(super) fn shortest(timer: &Timer<'_>, dispatch: &[Dispatch], effort: Effort) -> Result<f64, RuntimeError> {
    measure::warm_up(timer, dispatch, effort)?;
    Ok(timer.time_in_turn(dispatch, 6)?.into_iter().fold(f64::INFINITY, f64::min))
}

fn gpu_flops(timer: &Timer<'_>, effort: Effort, vectors: &str) -> Result<f64, RuntimeError> {
    let gpu = timer.gpu();
    // About a millisecond on the largest GPUs, and on the slowest of each kind well below the time after which systems
    // reset a GPU.
    let groups: u32 = match gpu.adapter().kind {
        AdapterKind::Software => 256,
        AdapterKind::Integrated => 4096,
        AdapterKind::Discrete | AdapterKind::Other => 32_768,
    };
    let invocations = groups * 64;
    let scale = gpu.buffer("scale", 16, Role::Uniform)?;
    // Below one, so that no sum overflows.
    gpu.upload(&scale, &[0.5_f32; 4].map(f32::to_le_bytes).concat())?;
    let sums = gpu.buffer("sums", u64::from(invocations) * 16, Role::Storage)?;
    let pipeline =
        gpu.pipeline("multiply-adds", &format!("{vectors}{MULTIPLY_ADDS}"), &[Binding::Uniform, Binding::Write])?;
    let bound = [Bound::whole(&scale), Bound::whole(&sums)];
    let dispatch = gpu.dispatch("multiply-adds", &pipeline, &bound, [groups, 1, 1])?;
    let dispatch = [dispatch];
    let shortest = shortest(timer, &dispatch, effort)?;
    Ok(f64::from(invocations) * FLOPS_EACH / shortest)
}

fn gpu_matrix_flops(unit: MatrixUnit, timer: &Timer<'_>, effort: Effort) -> Result<f64, RuntimeError> {
    let (gpu, MatrixUnit { edge, subgroup }) = (timer.gpu(), unit);
    let groups: u32 = if effort.software { 16 } else { 8192 };
    let places = groups.min(256);
    let sizes = format!(
        "enable f16;\nenable wgpu_cooperative_matrix;\nconst EDGE = {edge}u;\nconst SUBGROUP = {subgroup}u;\nconst PLACES = {places}u;\n\
         alias Left = coop_mat{edge}x{edge}<f16, A>;\nalias Right = coop_mat{edge}x{edge}<f16, B>;\n\
         alias Sum = coop_mat{edge}x{edge}<f32, C>;\n"
    );
    let square = u64::from(edge * edge);
    // Values with many set bits: on zeros a device takes less power and reaches clocks that real data do not allow.
    let factors = gpu.buffer("factors", 2 * 4 * square, Role::Storage)?;
    let numbers: Vec<f32> = (0..4 * square).map(|i| (i * 2_654_435_761 % 4093) as f32 / 2046.5 - 1.0).collect();
    gpu.upload(&factors, &Storage::F16.encode(DType::Elem, &[numbers.len()], &numbers))?;
    let sums = gpu.buffer("sums", 8 * 4 * 4 * u64::from(places) * square, Role::Storage)?;
    let pipeline = gpu.pipeline("matrix products", &(sizes + MATRIX_PRODUCTS), &[Binding::Read, Binding::Write])?;
    let bound = [Bound::whole(&factors), Bound::whole(&sums)];
    let dispatch = gpu.dispatch("matrix products", &pipeline, &bound, [groups, 1, 1])?;
    let dispatch = [dispatch];
    let shortest = shortest(timer, &dispatch, effort)?;
    Ok(f64::from(groups) * 4.0 * 8.0 * 256.0 * 2.0 * f64::from(edge).powi(3) / shortest)
}
