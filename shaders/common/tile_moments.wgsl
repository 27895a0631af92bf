// Mean and variance of every channel over a tile of at most 64 positions, by a workgroup of 256: invocation `16 * ty +
// tx` holds four channels, `tx`, of positions `4 * ty ..`. Positions from `count` on hold zeros.
struct TileMoments {
    mean: vec4<f32>,
    variance: vec4<f32>,
}

var<workgroup> tile_sums: array<vec4<f32>, 256>;

// The sum over `ty`, for every `tx`. Called by all invocations.
fn sum_positions(value: vec4<f32>, thread: u32) -> vec4<f32> {
    tile_sums[thread] = value;
    workgroupBarrier();
    for (var half = 128u; half >= 16u; half /= 2u) {
        if thread < half { tile_sums[thread] += tile_sums[thread + half]; }
        workgroupBarrier();
    }
    let sum = tile_sums[thread % 16u];
    workgroupBarrier();
    return sum;
}

fn tile_moments(values: array<vec4<f32>, 4>, count: u32, thread: u32) -> TileMoments {
    var v = values;
    let mean = sum_positions(v[0] + v[1] + v[2] + v[3], thread) / f32(count);
    var squares = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        let d = v[i] - mean;
        if 4u * (thread / 16u) + i < count { squares += d * d; }
    }
    return TileMoments(mean, sum_positions(squares, thread) / f32(count));
}
