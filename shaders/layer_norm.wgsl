// LayerNorm: y = (x - mean) / sqrt(variance + eps) * weight + bias, row by row. The host side is
// kernels/src/layer_norm.rs.
//
// Operands: x and y [rows, c], weight and bias [c]. One workgroup of 256 invocations handles one row. It takes two
// passes: the first finds the mean up to rounding, the second sums differences from it and their squares. The sum of
// differences corrects the mean. Unlike mean(x^2) - mean(x)^2 in one pass, this suffers no cancellation.
#import grid
#import sum_all

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

alias Summed = vec2<f32>;

// Returns x - near at vec4 `i` of a row, and zeros in the padding.
fn difference(row: u32, i: u32, near: f32) -> vec4<f32> {
    let c4 = (params.c + 3u) / 4u;
    let inside = 4u * i + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.c);
    return select(vec4<f32>(0.0), load4(x[row * c4 + i]) - near, inside);
}

// Returns (near, correction, rstd): `near` is the mean up to rounding, `near + correction` the mean, and `rstd` is
// 1 / sqrt(variance + eps).
fn statistics(row: u32, thread: u32) -> vec3<f32> {
    let c4 = (params.c + 3u) / 4u;
    let count = f32(params.c);
    var sum = 0.0;
    for (var i = thread; i < c4; i += 256u) { sum += dot(difference(row, i, 0.0), vec4<f32>(1.0)); }
    let near = sum_all(vec2<f32>(sum, 0.0), thread).x / count;
    var sums = vec2<f32>(0.0);
    for (var i = thread; i < c4; i += 256u) {
        let d = difference(row, i, near);
        sums += vec2<f32>(dot(d, vec4<f32>(1.0)), dot(d, d));
    }
    let moments = sum_all(sums, thread) / count;
    // `correction` is tiny, so that the subtraction below does not cancel.
    let correction = moments.x;
    return vec3<f32>(near, correction, 1.0 / sqrt(max(moments.y - correction * correction, 0.0) + params.eps));
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
    let found = statistics(row, thread);
    for (var i = thread; i < c4; i += 256u) {
        let v = (difference(row, i, found.x) - found.y) * found.z;
        y[row * c4 + i] = store4(v * load4(weight[i]) + load4(bias[i]));
    }
}
