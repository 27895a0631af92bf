// Mean and variance of every channel over tiles of 64 positions, from values in the registers of a workgroup. The
// values are laid out as in common/gemm_sums.wgsl: invocation `thread` has ROWS_EACH positions from `ROWS_EACH *
// (thread / THREADS_X)` of the vec4 of channels `thread % THREADS_X`. MOMENT_ROWS invocations share a tile. Positions
// from the tile's `count` on must be zeros.
#import scratch

// Moments of four channels.
struct TileMoments {
    mean: vec4<f32>,
    variance: vec4<f32>,
}

// Number of invocations, one below the other, that make up a tile of 64 positions.
const MOMENT_ROWS = 64u / ROWS_EACH;

// Returns the row of an invocation in its tile, counted in invocations.
fn moment_row(thread: u32) -> u32 {
    return thread / THREADS_X % MOMENT_ROWS;
}

// Returns the number of an invocation's tile in the workgroup.
fn moment_tile(thread: u32) -> u32 {
    return thread / THREADS_X / MOMENT_ROWS;
}

// Returns the sum over the invocations of a tile. All invocations of the workgroup must call it.
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

// Returns the moments of this invocation's channels over its tile, which has `count` positions. The mean comes first,
// and the variance is summed around it, so that nothing cancels. All invocations of the workgroup must call it.
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
