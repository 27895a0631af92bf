// Mean and reciprocal standard deviation of a row of `x` [rows, c], computed by a workgroup of 256 invocations. Shared
// by layer_norm.wgsl and layer_norm_stats.wgsl, which declare `x`, and `c` and `eps` in `Params`.
//
// Two passes over the row: the first finds the mean up to rounding, the second sums differences from it and their
// squares. The sum of differences corrects the mean. Unlike mean(x^2) - mean(x)^2 in one pass, this suffers no
// cancellation.
var<workgroup> partial: array<vec2<f32>, 256>;

// Returns the sum over all invocations of the workgroup, which must all call it.
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

// Returns x - near at vec4 `i` of a row, and zeros in the padding.
fn difference(row: u32, i: u32, near: f32) -> vec4<f32> {
    let c4 = (params.c + 3u) / 4u;
    let inside = 4u * i + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.c);
    return select(vec4<f32>(0.0), load4(x[row * c4 + i]) - near, inside);
}

// Returns (near, correction, rstd): `near` is the mean up to rounding, `near + correction` the mean, and `rstd` is
// 1 / sqrt(variance + eps).
fn row_moments(row: u32, thread: u32) -> vec3<f32> {
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
