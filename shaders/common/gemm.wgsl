// Tiled matrix product: y[row, col] = sum over k of x[row, k] * w[col, k], both read as vec4 along k. Its sizes are those
// of a tile of kernels/src/tile.rs.
//
// A workgroup of THREADS_X x THREADS_Y x SPLIT invocations computes a tile, ROWS_EACH rows and QUADS_EACH vec4s of columns
// per invocation; where SPLIT is not one, as many share a sum. Each step stages STEP4 vec4s of k of all rows and columns
// of the tile in workgroup memory while the next are on their way. The module that imports this defines
//   fn prepare_row(slot: u32, row: u32)                      // called once, before the rows' first load
//   fn load_x(slot: u32, row: u32, k4: u32) -> vec4<f32>     // zero beyond the last row
//   fn load_w(col0: u32, col: u32, k4: u32) -> vec4<f32>     // column `col` of the tile from `col0`; zero beyond the last
#import scratch
const TILE_ROWS = ROWS_EACH * THREADS_Y;
const TILE_QUADS = QUADS_EACH * THREADS_X;
const LAYER = THREADS_X * THREADS_Y;
const THREADS = LAYER * SPLIT;
const SUMS = ROWS_EACH * QUADS_EACH;

// Entry `i * QUADS_EACH + j` is row `i` of an invocation, and vec4 `j` of its columns.
alias Sums = array<vec4<f32>, SUMS>;

// The vec4s of k of an invocation's columns: entry `4 * j + i` is column `i` of vec4 `j`.
alias Columns = array<vec4<f32>, 4u * QUADS_EACH>;

// Adds the products of four values of k of a row and of four columns.
fn multiplied(x: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, sums: vec4<f32>) -> vec4<f32> {
    var s = fma(vec4<f32>(x.x), vec4<f32>(a.x, b.x, c.x, d.x), sums);
    s = fma(vec4<f32>(x.y), vec4<f32>(a.y, b.y, c.y, d.y), s);
    s = fma(vec4<f32>(x.z), vec4<f32>(a.z, b.z, c.z, d.z), s);
    return fma(vec4<f32>(x.w), vec4<f32>(a.w, b.w, c.w, d.w), s);
}

@if(STAGED)
// A step of rows, then one of columns: column `4 * q + i` of the tile lies at `i * TILE_QUADS + q`, so that neighbouring
// invocations read neighbouring words.
const ROW_STRIDE = TILE_ROWS + 1u;
const COL_STRIDE = 4u * TILE_QUADS + 1u;
const FIRST_COL = STEP4 * ROW_STRIDE;
// What one invocation stages of a step: so many rows and columns, each this far from the last.
const ROW_SLOTS = TILE_ROWS * STEP4 / THREADS;
const COL_SLOTS = 4u * TILE_QUADS * STEP4 / THREADS;
const SPAN = THREADS / STEP4;

var<private> next_x: array<vec4<f32>, ROW_SLOTS>;
var<private> next_w: array<vec4<f32>, COL_SLOTS>;

fn fetch(row0: u32, col0: u32, at: u32, k4: u32, k4_len: u32) {
    for (var s = 0u; s < ROW_SLOTS; s++) { next_x[s] = vec4<f32>(); }
    for (var s = 0u; s < COL_SLOTS; s++) { next_w[s] = vec4<f32>(); }
    if k4 >= k4_len { return; }
    for (var s = 0u; s < ROW_SLOTS; s++) { next_x[s] = load_x(s, row0 + at + s * SPAN, k4); }
    for (var s = 0u; s < COL_SLOTS; s++) { next_w[s] = load_w(col0, at + s * SPAN, k4); }
}

fn stage(at: u32, k: u32) {
    for (var s = 0u; s < ROW_SLOTS; s++) { scratch[k * ROW_STRIDE + at + s * SPAN] = next_x[s]; }
    for (var s = 0u; s < COL_SLOTS; s++) {
        let col = at + s * SPAN;
        scratch[FIRST_COL + k * COL_STRIDE + col % 4u * TILE_QUADS + col / 4u] = next_w[s];
    }
}

/// The sums of invocation `thread`, the first LAYER of which hold the tile: rows from `ROWS_EACH * (thread / THREADS_X)`
/// and vec4s of columns `thread % THREADS_X` and every THREADS_X further.
fn gemm_tile(row0: u32, col0: u32, k4_len: u32, thread: u32) -> Sums {
    var sums = Sums();
    var cols = Columns();
    let lane = thread % LAYER;
    let row = ROWS_EACH * (lane / THREADS_X);
    let first_k = thread / LAYER * (STEP4 / SPLIT);
    let at = thread / STEP4;
    for (var s = 0u; s < ROW_SLOTS; s++) { prepare_row(s, row0 + at + s * SPAN); }
    fetch(row0, col0, at, thread % STEP4, k4_len);
    for (var step = 0u; step < k4_len; step += STEP4) {
        stage(at, thread % STEP4);
        workgroupBarrier();
        fetch(row0, col0, at, step + STEP4 + thread % STEP4, k4_len);
        for (var k = first_k; k < first_k + STEP4 / SPLIT; k++) {
            let col = FIRST_COL + k * COL_STRIDE + lane % THREADS_X;
            for (var c = 0u; c < 4u * QUADS_EACH; c++) { cols[c] = scratch[col + c % 4u * TILE_QUADS + c / 4u * THREADS_X]; }
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
    return sums;
}
@end

@if(NOT_STAGED)
// Few rows read every weight once or twice: nothing is staged, and neighbouring invocations read neighbouring vec4s of k.
const ROW_SLOTS = ROWS_EACH;

/// The sums of invocation `thread`, of which the first LAYER hold the tile.
fn gemm_tile(row0: u32, col0: u32, k4_len: u32, thread: u32) -> Sums {
    var sums = Sums();
    var cols = Columns();
    let quad = thread / SPLIT;
    for (var i = 0u; i < ROWS_EACH; i++) { prepare_row(i, row0 + i); }
    for (var k4 = thread % SPLIT; k4 < k4_len; k4 += SPLIT) {
        for (var c = 0u; c < 4u; c++) { cols[c] = load_w(col0, 4u * quad + c, k4); }
        for (var i = 0u; i < ROWS_EACH; i++) {
            sums[i] = multiplied(load_x(i, row0 + i, k4), cols[0], cols[1], cols[2], cols[3], sums[i]);
        }
    }
    return met(sums, thread, thread % SPLIT * LAYER + quad);
}
@end

@if(SHARED_SUMS)
// Sums of the invocations that share them, whose own are at `place`: always in the same order.
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
