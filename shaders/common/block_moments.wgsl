// Mean and variance of rows over blocks of 32 columns, from values in the registers of a workgroup that are laid out as
// the sums of a product (common/gemm_sums.wgsl). Values beyond the last column must be zeros. A tile has whole blocks
// of columns, and ROWS_EACH is even. The importing module declares `row_moments` [rows, 2, blocks], means first, and in
// `Params` `rows` and `cols`.
#import gemm_sums
#import scratch

// Number of invocations that share a block of a row, and number of its vec4s that each of them has.
const SHARERS = min(THREADS_X, 8u);
const OWN_QUADS = 8u / SHARERS;

// Returns the number of columns that `width` columns from `first` on have within the tensor.
fn columns_from(first: u32, width: u32) -> f32 {
    return f32(min(width, max(params.cols, first) - first));
}

// Returns how many columns of a block belong to the invocation that has vec4 `col4`, the first of its own.
fn own_columns(col4: u32) -> f32 {
    var count = 0.0;
    for (var q = 0u; q < OWN_QUADS; q++) { count += columns_from(4u * (col4 + q * THREADS_X), 4u); }
    return count;
}

// Returns the mean of this invocation's values of row `i` from vec4 `quad` of its columns on, and the sum of squared
// differences from it. `col4` is the column of that vec4.
fn own_moments(values: ptr<function, Sums>, i: u32, quad: u32, col4: u32) -> vec2<f32> {
    var sum = 0.0;
    for (var q = 0u; q < OWN_QUADS; q++) { sum += dot((*values)[i * QUADS_EACH + quad + q], vec4<f32>(1.0)); }
    let mean = sum / max(own_columns(col4), 1.0);
    var squares = 0.0;
    for (var q = 0u; q < OWN_QUADS; q++) {
        let inside = 4u * (col4 + q * THREADS_X) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols);
        let d = select(vec4<f32>(0.0), (*values)[i * QUADS_EACH + quad + q] - mean, inside);
        squares += dot(d, d);
    }
    return vec2<f32>(mean, squares);
}

// Returns what invocation `at` found for the first or the second row of a pair.
fn exchanged(at: u32, second: bool) -> vec2<f32> {
    let both = scratch[at];
    return select(both.xy, both.zw, second);
}

// Returns mean and variance of a block of a row, merged from what the invocations from `first` on found for it (Chan,
// Golub and LeVeque). Means are summed relative to the first one, so that nothing cancels.
fn merged_block(first: u32, block: u32, second: bool) -> vec2<f32> {
    let origin = exchanged(first, second).x;
    let count = columns_from(32u * block, 32u);
    var sum = 0.0;
    for (var s = 0u; s < SHARERS; s++) {
        sum += own_columns(8u * block + s) * (exchanged(first + s, second).x - origin);
    }
    let shifted = sum / count;
    var squares = 0.0;
    for (var s = 0u; s < SHARERS; s++) {
        let own = exchanged(first + s, second);
        let d = own.x - origin - shifted;
        squares += own.y + own_columns(8u * block + s) * d * d;
    }
    return vec2<f32>(origin + shifted, squares / count);
}

// Writes the moments of a block of a row. The last block of a row also writes zeros to the padding.
fn store_block(row: u32, block: u32, moments: vec2<f32>) {
    let blocks = (params.cols + 31u) / 32u;
    let stride = (blocks + 3u) / 4u * 4u;
    let end = select(block + 1u, stride, block + 1u == blocks);
    for (var at = block; at < end; at++) {
        row_moments[2u * row * stride + at] = select(0.0, moments.x, at == block);
        row_moments[(2u * row + 1u) * stride + at] = select(0.0, moments.y, at == block);
    }
}

// Writes the moments of a tile. `row0` is the first row of this invocation, `tile4` the first vec4 of columns of the
// tile. All invocations of the workgroup must call it.
fn write_row_moments(values: ptr<function, Sums>, row0: u32, tile4: u32, thread: u32) {
    let lane = thread % SHARERS;
    for (var quad = 0u; quad < QUADS_EACH; quad += OWN_QUADS) {
        let col4 = tile4 + quad * THREADS_X + thread % THREADS_X;
        let block = col4 / 8u;
        for (var i = 0u; i < ROWS_EACH; i += 2u) {
            scratch[thread] = vec4<f32>(own_moments(values, i, quad, col4), own_moments(values, i + 1u, quad, col4));
            workgroupBarrier();
            // The first two of the invocations that share the block merge a row each.
            let row = row0 + i + lane;
            if (lane < 2u) & (thread < LAYER) & (row < params.rows) & (32u * block < params.cols) {
                store_block(row, block, merged_block(thread - lane, block, lane == 1u));
            }
            workgroupBarrier();
        }
    }
}
