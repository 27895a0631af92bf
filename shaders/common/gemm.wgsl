// Tiled matrix product on ordinary arithmetic units: y[row, col] = sum over k of x[row, k] * w[col, k]. Both factors
// are row-major with k innermost, x [rows, k] and w [cols, k], and are read as vec4s along k. Accumulation is in f32.
// The tile sizes are the constants of a `Tile` in kernels/src/tile.rs.
//
// A workgroup computes a tile of TILE_ROWS x 4 * TILE_QUADS sums with THREADS_X x THREADS_Y x SPLIT invocations. Each
// invocation accumulates ROWS_EACH rows of QUADS_EACH vec4s of columns in registers. With SPLIT > 1, SPLIT invocations
// share every sum: each takes its part of k, and they add up through workgroup memory at the end (split-k in a
// workgroup).
//
// STAGED: every step of the main loop stages STEP4 vec4s of k of all rows and columns of the tile in workgroup memory,
// and loads the next step into registers meanwhile. The loads keep the stored format, and conversion, norms and zero
// padding are applied only when the values are staged. No load has a branch of its own either: otherwise compilers wait
// for each load before they start the next.
//
// Not STAGED: for few rows, where nothing is reused between invocations, every invocation loads its operands directly.
//
// The importing module declares the operands of common/prologue.wgsl and defines how elements of x and w are found.
// `slot` numbers the rows that an invocation loads, and `k4` counts vec4s of k:
//   fn prepare_rows(row0: u32, at: u32)                                // called once, before the loads; slot s is row
//                                                                      // `row0 + at + s * SPAN`
//   fn finish_rows(row0: u32, at: u32, thread: u32)                    // called once by all invocations, as the first
//                                                                      // step is being loaded
//   fn fetch_k(k4: u32) -> bool                                        // loads what rows share; whether k4 is in `x2`
//   fn fetch_x(slot: u32, row: u32, k4: u32, second: bool) -> Input    // stored x; anything for rows beyond the last
//   fn made_x(slot: u32, k4: u32, fetched: Input) -> vec4<f32>         // the values of a stored x: norm, zero padding
//   fn made_pack_x(slot: u32, k4: u32, fetched: Input) -> Pack         // those values in the storage type
//   fn fetch_w(col0: u32, first: u32, at: u32, k4: u32) -> WeightPack  // stored w of column `first + at` of the tile;
//                                                                      // `first` is constant once loops are unrolled
//   fn fetch_scale(col0: u32, col: u32) -> WeightPack                  // scale of a column's weights: Storage::prelude
// Sums of columns beyond the last are undefined (their weights may be anything), and the importing module ignores them.
#import gemm_sums
#import multiplied
#import scratch
@if(STAGED) #import gemm_fetch
#import gemm_columns
const THREADS = LAYER * SPLIT;

// Weights of an invocation's columns at one vec4 of k: entry `4 * j + i` is column `i` of vec4 `j`.
alias Columns = array<vec4<f32>, 4u * QUADS_EACH>;

@if(STAGED)
// Layout of workgroup memory: x as [STEP4, ROW_STRIDE], then w as [STEP4, COL_STRIDE], in vec4s of k.
// Column `4 * q + i` of the tile is at `i * COL_QUADS + q`, so that neighbouring invocations read neighbouring vec4s.
// The strides are padded against bank conflicts: see `Tile::strides`.
const COL_STRIDE = 4u * COL_QUADS + 1u;
const FIRST_COL = STEP4 * ROW_STRIDE;

// Stages what `fetch` loaded: rows and columns from `at`, vec4 `k` of the step. Weights from `end4` on become zeros.
fn stage(at: u32, k: u32, k4: u32, end4: u32) {
    for (var s = 0u; s < ROW_SLOTS; s++) { scratch[k * ROW_STRIDE + at + s * SPAN] = made_x(s, next_k4, next_x[s]); }
    for (var s = 0u; s < COL_SLOTS; s++) {
        let col = at + s * SPAN;
        let v = select(vec4<f32>(0.0), weight4(next_w[s]), k4 < end4);
        scratch[FIRST_COL + k * COL_STRIDE + col % 4u * COL_QUADS + col / 4u] = v;
    }
}

// Computes the tile from row `row0` and column `col0`, summed over the vec4s of k in `first4..end4`. Returns the sums
// of invocation `thread`: rows from `ROWS_EACH * (thread / THREADS_X)`, and every THREADS_X-th vec4 of columns from
// `thread % THREADS_X`. The first LAYER invocations hold the whole tile.
fn gemm_tile(row0: u32, col0: u32, first4: u32, end4: u32, thread: u32) -> Sums {
    var sums: Sums;
    var cols: Columns;
    let lane = thread % LAYER;
    let row = ROWS_EACH * (lane / THREADS_X);
    let first_k = thread / LAYER * (STEP4 / SPLIT);
    let at = thread / STEP4;
    let own_k = thread % STEP4;
    prepare_rows(row0, at);
    fetch(row0, col0, at, first4 + own_k, end4);
    finish_rows(row0, at, thread);
    for (var step = first4; step < end4; step += STEP4) {
        stage(at, own_k, step + own_k, end4);
        // Loads begin before the barrier, which covers a part of their latency.
        if step + STEP4 < end4 { fetch(row0, col0, at, step + STEP4 + own_k, end4); }
        workgroupBarrier();
        for (var k = first_k; k < first_k + STEP4 / SPLIT; k++) {
            let col = FIRST_COL + k * COL_STRIDE + lane % THREADS_X;
            for (var c = 0u; c < 4u * QUADS_EACH; c++) { cols[c] = scratch[col + c % 4u * COL_QUADS + c / 4u * THREADS_X]; }
            for (var i = 0u; i < ROWS_EACH; i++) {
                let x = scratch[k * ROW_STRIDE + row + i];
                for (var j = 0u; j < QUADS_EACH; j++) {
                    let e = i * QUADS_EACH + j;
                    sums[e] = multiplied(x, cols[4u * j], cols[4u * j + 1u], cols[4u * j + 2u], cols[4u * j + 3u], sums[e]);
                }
            }
        }
        workgroupBarrier();
    }
    @if(SHARED_SUMS) sums = met(sums, thread, thread);
    return scaled(sums, col0, thread);
}
@end

@if(!STAGED)
// With few rows, every weight is read once or twice, and staging would not pay. Neighbouring invocations read
// neighbouring vec4s of k.
const ROW_SLOTS = ROWS_EACH;
const SPAN = 1u;

// Computes the tile from row `row0` and column `col0`, summed over the vec4s of k in `first4..end4`. Returns the sums
// of invocation `thread`, placed as in the staged form.
fn gemm_tile(row0: u32, col0: u32, first4: u32, end4: u32, thread: u32) -> Sums {
    var sums: Sums;
    var fetched_w: array<WeightPack, 4>;
    var fetched_x: array<Input, ROWS_EACH>;
    var cols: Columns;
    let quad = thread / SPLIT;
    prepare_rows(row0, 0u);
    finish_rows(row0, 0u, thread);
    for (var k4 = first4 + thread % SPLIT; k4 < end4; k4 += SPLIT) {
        let second = fetch_k(k4);
        for (var c = 0u; c < 4u; c++) { fetched_w[c] = fetch_w(col0, c, 4u * quad, k4); }
        if second {
            for (var i = 0u; i < ROWS_EACH; i++) { fetched_x[i] = fetch_x(i, row0 + i, k4, true); }
        } else {
            for (var i = 0u; i < ROWS_EACH; i++) { fetched_x[i] = fetch_x(i, row0 + i, k4, false); }
        }
        for (var c = 0u; c < 4u; c++) { cols[c] = weight4(fetched_w[c]); }
        for (var i = 0u; i < ROWS_EACH; i++) {
            sums[i] = multiplied(made_x(i, k4, fetched_x[i]), cols[0], cols[1], cols[2], cols[3], sums[i]);
        }
    }
    return scaled(met(sums, thread, thread % SPLIT * LAYER + quad), col0, thread);
}
@end

@if(SHARED_SUMS)
// Adds the sums of the SPLIT invocations that share them, by a tree in workgroup memory: the order is always the same,
// and so is the result. `place` is the invocation's position in [SPLIT, LAYER].
fn met(own: Sums, thread: u32, place: u32) -> Sums {
    var sums = own;
    for (var e = 0u; e < SUMS; e++) {
        scratch[place] = sums[e];
        workgroupBarrier();
        for (var half = SPLIT / 2u; half > 0u; half /= 2u) {
            if thread < half * LAYER { scratch[thread] += scratch[thread + half * LAYER]; }
            workgroupBarrier();
        }
        sums[e] = scratch[thread % LAYER];
        workgroupBarrier();
    }
    return sums;
}
@end
