// Mean and variance of every channel over tiles of 64 positions, by invocations that lie as those of common/gemm.wgsl:
// `thread / THREADS_X` counts rows of ROWS_EACH positions, `thread % THREADS_X` channels in vec4s. As many rows as make 64
// positions are a tile. Positions from `count` of a tile on hold zeros.
#import scratch
struct TileMoments {
    mean: vec4<f32>,
    variance: vec4<f32>,
}

const MOMENT_ROWS = 64u / ROWS_EACH;

// The row of an invocation in its tile of 64 positions, and that tile among those of the workgroup.
fn moment_row(thread: u32) -> u32 {
    return thread / THREADS_X % MOMENT_ROWS;
}

fn moment_tile(thread: u32) -> u32 {
    return thread / THREADS_X / MOMENT_ROWS;
}

// The sum over the rows of a tile. Called by all invocations.
fn sum_positions(value: vec4<f32>, thread: u32) -> vec4<f32> {
    let row = moment_row(thread);
    scratch[thread] = value;
    workgroupBarrier();
    for (var half = MOMENT_ROWS / 2u; half > 0u; half /= 2u) {
        if row < half { scratch[thread] += scratch[thread + half * THREADS_X]; }
        workgroupBarrier();
    }
    let sum = scratch[thread - row * THREADS_X];
    workgroupBarrier();
    return sum;
}

fn tile_moments(values: array<vec4<f32>, ROWS_EACH>, count: u32, thread: u32) -> TileMoments {
    var v = values;
    var sum = v[0];
    for (var i = 1u; i < ROWS_EACH; i++) { sum += v[i]; }
    let mean = sum_positions(sum, thread) / f32(max(count, 1u));
    var squares = vec4<f32>(0.0);
    for (var i = 0u; i < ROWS_EACH; i++) {
        let d = v[i] - mean;
        if ROWS_EACH * moment_row(thread) + i < count { squares += d * d; }
    }
    return TileMoments(mean, sum_positions(squares, thread) / f32(max(count, 1u)));
}
