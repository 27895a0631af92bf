// Tiled matrix product: y[row, col] = sum over k of x[row, k] * w[col, k], both read as vec4 along k. Its sizes are those
// of a tile of kernels/src/tile.rs.
//
// A workgroup of THREADS_X x THREADS_Y x SPLIT invocations computes a tile, ROWS_EACH rows and QUADS_EACH vec4s of columns
// per invocation; where SPLIT is not one, as many share a sum. Each step stages STEP4 vec4s of k of all rows and columns
// of the tile in workgroup memory while the next are on their way. They travel as they lie in memory, loaded without a
// branch and untouched until they are staged: otherwise each load is waited for before the next one starts. The module
// that imports this declares what common/source.wgsl asks for, and defines
//   fn prepare_row(slot: u32, row: u32)                                  // called once, before the row's first load
//   fn fetch_k(k4: u32) -> bool                                          // what all rows need at `k4`; whether it is `x2`'s
//   fn fetch_x(slot: u32, row: u32, k4: u32, second: bool) -> Input      // anything beyond the last row
//   fn made_x(slot: u32, k4: u32, fetched: Input) -> vec4<f32>           // the values of what was fetched
//   fn made_pack_x(slot: u32, k4: u32, fetched: Input) -> Pack           // the same, as they are stored
//   fn fetch_w(col0: u32, first: u32, at: u32, k4: u32) -> WeightPack    // weights of column `first + at` of the tile, `first`
//                                                                        // a constant once loops are unrolled
//   fn fetch_scale(col0: u32, col: u32) -> WeightPack                    // the head of a column's: see Storage::prelude
// and leaves the sums of columns beyond the last alone, whose weights may be anything.
#import gemm_sums
#import scratch
@if(STAGED) #import gemm_fetch
#import gemm_columns
const THREADS = LAYER * SPLIT;

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
// A step of rows, then one of columns: column `4 * q + i` of the tile lies at `i * COL_QUADS + q`, so that neighbouring
// invocations read neighbouring words. Strides leave gaps between them, see `Tile::strides`.
const COL_STRIDE = 4u * COL_QUADS + 1u;
const FIRST_COL = STEP4 * ROW_STRIDE;

fn stage(at: u32, k: u32, k4: u32, end4: u32) {
    for (var s = 0u; s < ROW_SLOTS; s++) { scratch[k * ROW_STRIDE + at + s * SPAN] = made_x(s, next_k4, next_x[s]); }
    for (var s = 0u; s < COL_SLOTS; s++) {
        let col = at + s * SPAN;
        let v = select(vec4<f32>(0.0), weight4(next_w[s]), k4 < end4);
        scratch[FIRST_COL + k * COL_STRIDE + col % 4u * COL_QUADS + col / 4u] = v;
    }
}

/// The sums over vec4s of k from `first4` to before `end4` of invocation `thread`, the first LAYER of which hold the tile:
/// rows from `ROWS_EACH * (thread / THREADS_X)` and vec4s of columns `thread % THREADS_X` and every THREADS_X further.
fn gemm_tile(row0: u32, col0: u32, first4: u32, end4: u32, thread: u32) -> Sums {
    var sums: Sums;
    var cols: Columns;
    let lane = thread % LAYER;
    let row = ROWS_EACH * (lane / THREADS_X);
    let first_k = thread / LAYER * (STEP4 / SPLIT);
    let at = thread / STEP4;
    let own_k = thread % STEP4;
    for (var s = 0u; s < ROW_SLOTS; s++) { prepare_row(s, row0 + at + s * SPAN); }
    fetch(row0, col0, at, first4 + own_k, end4);
    for (var step = first4; step < end4; step += STEP4) {
        stage(at, own_k, step + own_k, end4);
        workgroupBarrier();
        if step + STEP4 < end4 { fetch(row0, col0, at, step + STEP4 + own_k, end4); }
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
// Few rows read every weight once or twice: nothing is staged, and neighbouring invocations read neighbouring vec4s of k.
const ROW_SLOTS = ROWS_EACH;

/// The same.
fn gemm_tile(row0: u32, col0: u32, first4: u32, end4: u32, thread: u32) -> Sums {
    var sums: Sums;
    var fetched_w: array<WeightPack, 4>;
    var fetched_x: array<Input, ROWS_EACH>;
    var cols: Columns;
    let quad = thread / SPLIT;
    for (var i = 0u; i < ROWS_EACH; i++) { prepare_row(i, row0 + i); }
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
