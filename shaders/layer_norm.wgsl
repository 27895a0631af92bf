// y = (x - mean) / sqrt(variance + eps) * weight + bias, one workgroup a row: see kernels/src/layer_norm.rs.
#import grid

struct Params {
    rows: u32,
    c: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [rows, c]
@group(0) @binding(2) var<storage, read> weight: array<Pack>; // [c]
@group(0) @binding(3) var<storage, read> bias: array<Pack>; // [c]
@group(0) @binding(4) var<storage, read_write> y: array<Pack>; // [rows, c]

var<workgroup> partial: array<vec2<f32>, 256>;

// The sum over all invocations. Called by all of them.
fn sum_all(value: vec2<f32>, thread: u32) -> vec2<f32> {
    partial[thread] = value;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if thread < half { partial[thread] += partial[thread + half]; }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

// x - near at vec4 `i` of a row, zero in the padding.
fn difference(row: u32, i: u32, near: f32) -> vec4<f32> {
    let c4 = (params.c + 3u) / 4u;
    let inside = 4u * i + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.c);
    return select(vec4<f32>(), load4(x[row * c4 + i]) - near, inside);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = flat_group(group, groups);
    if row >= params.rows { return; }
    let c4 = (params.c + 3u) / 4u;
    let count = f32(params.c);
    var sum = 0.0;
    for (var i = thread; i < c4; i += 256u) { sum += dot(difference(row, i, 0.0), vec4<f32>(1.0)); }
    let near = sum_all(vec2<f32>(sum, 0.0), thread).x / count;
    var sums = vec2<f32>();
    for (var i = thread; i < c4; i += 256u) {
        let d = difference(row, i, near);
        sums += vec2<f32>(dot(d, vec4<f32>(1.0)), dot(d, d));
    }
    let moments = sum_all(sums, thread) / count;
    // `near` is the mean but for rounding, so the squares' mean is hardly more than the variance: nothing cancels.
    let correction = moments.x;
    let rstd = 1.0 / sqrt(max(moments.y - correction * correction, 0.0) + params.eps);
    for (var i = thread; i < c4; i += 256u) {
        let v = (difference(row, i, near) - correction) * rstd;
        y[row * c4 + i] = store4(v * load4(weight[i]) + load4(bias[i]));
    }
}
