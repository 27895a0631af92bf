// Tiled matrix product by cooperative matrices, for devices with matrix units. It computes the same as
// common/gemm.wgsl, and asks the importing module for the same functions, which are described there. Factors are f16,
// accumulators f32. The tile sizes are the constants of a `Tile` with a `Matrix` in kernels/src/tile.rs.
//
// A workgroup computes a tile of TILE_ROWS x 4 * TILE_QUADS sums. Each subgroup accumulates STRIPS x 4 matrices of
// EDGE x EDGE in registers (c00 ... c33; STRIPS is two, or four if TALL). The subgroups form a grid of
// SUBGROUPS_X x SUBGROUPS_Y x SPLIT: with SPLIT > 1, SPLIT subgroups share every sum, and each multiplies its part of
// every step of k.
//
// Every step of the main loop stages STEP4 vec4s of k of the tile's rows and columns in workgroup memory, k innermost,
// and loads the next step into registers meanwhile. Matrices are not loaded from global memory directly, for two
// reasons: rows of x are computed as they are read (norms, taps of a convolution), and cooperative loads have no bounds
// checks. Weights need no repacking: the step of a column is 64 contiguous bytes or more, so that every memory sector
// is fully used (half as many bytes for int8, which follow the column's scale).
//
// Epilogue: the accumulators go through workgroup memory, one strip and two neighbouring matrices at a time, to the
// invocations that hold these sums in common/gemm.wgsl. Kernels handle both kinds of products with the same code.
#import matrix_unit
#import gemm_sums
#import scratch
#import gemm_fetch
#import gemm_columns
const THREADS = LAYER;

// Number of subgroups along the rows of the tile.
const SUBGROUPS_Y = TILE_ROWS / (STRIPS * EDGE);

// Row strides of a staged step and of a batch of sums, in vec4s: padding puts rows that are stored together into
// different banks.
const STEP_STRIDE = STEP4 + 2u;
const SUM_STRIDE = SUBGROUPS_X * (EDGE / 2u) + EDGE / 8u;

// Cooperative loads and stores on Vulkan (WIDE) take pointers to vec4s and count strides in vec4s, so that one store
// stages four values. Metal requires pointers to scalars. CELLS is the number of array elements in a vec4.
@if(WIDE)
const CELLS = 1u;
var<workgroup> x_tile: array<Pack, TILE_ROWS * STEP_STRIDE>;
var<workgroup> w_tile: array<Pack, 4u * TILE_QUADS * STEP_STRIDE>;

fn put_x(at: u32, v: Pack) { x_tile[at] = v; }
fn put_w(at: u32, v: Pack) { w_tile[at] = v; }

fn store_sums(left: Sum, right: Sum, at: u32) {
    coopStoreT(left, &scratch[at], SUM_STRIDE);
    coopStoreT(right, &scratch[at + EDGE / 4u], SUM_STRIDE);
}

fn sums_at(at: u32) -> vec4<f32> { return scratch[at]; }
@else
const CELLS = 4u;
var<workgroup> x_tile: array<f16, 4u * TILE_ROWS * STEP_STRIDE>;
var<workgroup> w_tile: array<f16, 16u * TILE_QUADS * STEP_STRIDE>;
var<workgroup> batch: array<f32, 4u * SPLIT * BATCH>;

fn put_x(at: u32, v: Pack) {
    x_tile[4u * at] = v.x;
    x_tile[4u * at + 1u] = v.y;
    x_tile[4u * at + 2u] = v.z;
    x_tile[4u * at + 3u] = v.w;
}

fn put_w(at: u32, v: Pack) {
    w_tile[4u * at] = v.x;
    w_tile[4u * at + 1u] = v.y;
    w_tile[4u * at + 2u] = v.z;
    w_tile[4u * at + 3u] = v.w;
}

fn store_sums(left: Sum, right: Sum, at: u32) {
    coopStoreT(left, &batch[4u * at], 4u * SUM_STRIDE);
    coopStoreT(right, &batch[4u * at + EDGE], 4u * SUM_STRIDE);
}

fn sums_at(at: u32) -> vec4<f32> {
    return vec4<f32>(batch[4u * at], batch[4u * at + 1u], batch[4u * at + 2u], batch[4u * at + 3u]);
}
@end

// Returns the first row, and column, of the tile that an invocation stages, below SPAN. Every number occurs once for
// each vec4 of k. Sixteen invocations store at a time, two rows if a step has eight vec4s of k: these rows are four
// apart, because neighbours share some of their banks.
fn staged_row(thread: u32) -> u32 {
    let t = thread / STEP4;
    if STEP4 != 8u || SPAN % 8u != 0u { return t; }
    return (t & ~7u) | ((t & 1u) << 2u) | ((t >> 1u) & 3u);
}

// Stages what `fetch` loaded: rows and columns from `at`, vec4 `k` of the step. Weights from `end4` on become zeros.
fn stage(at: u32, k: u32, step: u32, end4: u32) {
    for (var s = 0u; s < ROW_SLOTS; s++) { put_x((at + s * SPAN) * STEP_STRIDE + k, made_pack_x(s, next_k4, next_x[s])); }
    if step + STEP4 <= end4 {
        for (var s = 0u; s < COL_SLOTS; s++) { put_w((at + s * SPAN) * STEP_STRIDE + k, weight_pack(next_w[s])); }
        return;
    }
    // The last step may be incomplete.
    for (var s = 0u; s < COL_SLOTS; s++) {
        put_w((at + s * SPAN) * STEP_STRIDE + k, pack_if(step + k < end4, weight_pack(next_w[s])));
    }
}

// Copies this invocation's share of the batch in workgroup memory, matrices `2 * pair` and `2 * pair + 1` of strip
// `strip` of every subgroup, to `sums`. Sums that SPLIT subgroups share are added up.
fn take_sums(sums: ptr<function, Sums>, strip: u32, pair: u32, thread: u32) {
    workgroupBarrier();
    let row = ROWS_EACH * (thread / THREADS_X);
    for (var j = 0u; j < QUADS_EACH; j++) {
        let quad = j * THREADS_X + thread % THREADS_X;
        if row / EDGE % STRIPS != strip || quad / (EDGE / 2u) % 2u != pair { continue; }
        let first = (row / (STRIPS * EDGE) * EDGE + row % EDGE) * SUM_STRIDE + quad / EDGE * (EDGE / 2u) + quad % (EDGE / 2u);
        for (var i = 0u; i < ROWS_EACH; i++) {
            var sum = sums_at(first + i * SUM_STRIDE);
            for (var part = 1u; part < SPLIT; part++) { sum += sums_at(part * BATCH + first + i * SUM_STRIDE); }
            (*sums)[i * QUADS_EACH + j] = sum;
        }
    }
    workgroupBarrier();
}

// Computes the tile from row `row0` and column `col0`, summed over the vec4s of k in `first4..end4`. Returns the sums
// of invocation `thread`: rows from `ROWS_EACH * (thread / THREADS_X)`, and every THREADS_X-th vec4 of columns from
// `thread % THREADS_X`.
fn gemm_tile(row0: u32, col0: u32, first4: u32, end4: u32, thread: u32) -> Sums {
    // The index of a subgroup is computed from `thread`: in workgroups of one axis, all known devices number subgroups
    // in the order of invocations.
    let across = thread / SUBGROUP % SUBGROUPS_X;
    let down = thread / SUBGROUP / SUBGROUPS_X % SUBGROUPS_Y;
    let part = thread / SUBGROUP / SUBGROUPS_X / SUBGROUPS_Y;
    let row_len = EDGE * STEP_STRIDE * CELLS;
    let stride = STEP_STRIDE * CELLS;
    // Separate variables instead of an array: a single index that the compiler cannot resolve would move the whole
    // array from registers to memory.
    var c00 = Sum();
    var c01 = Sum();
    var c02 = Sum();
    var c03 = Sum();
    var c10 = Sum();
    var c11 = Sum();
    var c12 = Sum();
    var c13 = Sum();
    @if(TALL) var c20 = Sum();
    @if(TALL) var c21 = Sum();
    @if(TALL) var c22 = Sum();
    @if(TALL) var c23 = Sum();
    @if(TALL) var c30 = Sum();
    @if(TALL) var c31 = Sum();
    @if(TALL) var c32 = Sum();
    @if(TALL) var c33 = Sum();
    let at = staged_row(thread);
    let own_k = thread % STEP4;
    prepare_rows(row0, at);
    fetch(row0, col0, at, first4 + own_k, end4);
    finish_rows(row0, at, thread);
    for (var step = first4; step < end4; step += STEP4) {
        stage(at, own_k, step, end4);
        // Loads begin before the barrier, which covers a part of their latency.
        if step + STEP4 < end4 { fetch(row0, col0, at, step + STEP4 + own_k, end4); }
        workgroupBarrier();
        for (var first = 0u; first < STEP4; first += SPLIT * EDGE / 4u) {
            let k = first + part * (EDGE / 4u);
            let x_at = STRIPS * down * row_len + k * CELLS;
            let w_at = 4u * across * row_len + k * CELLS;
            let a0 = coopLoadT<Left>(&x_tile[x_at], stride);
            let a1 = coopLoadT<Left>(&x_tile[x_at + row_len], stride);
            @if(TALL) let a2 = coopLoadT<Left>(&x_tile[x_at + 2u * row_len], stride);
            @if(TALL) let a3 = coopLoadT<Left>(&x_tile[x_at + 3u * row_len], stride);
            // w is stored as [cols, k], and the right factor is its transpose: hence the load in the other order.
            let b0 = coopLoad<Right>(&w_tile[w_at], stride);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c10 = coopMultiplyAdd(a1, b0, c10);
            @if(TALL) c20 = coopMultiplyAdd(a2, b0, c20);
            @if(TALL) c30 = coopMultiplyAdd(a3, b0, c30);
            let b1 = coopLoad<Right>(&w_tile[w_at + row_len], stride);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c11 = coopMultiplyAdd(a1, b1, c11);
            @if(TALL) c21 = coopMultiplyAdd(a2, b1, c21);
            @if(TALL) c31 = coopMultiplyAdd(a3, b1, c31);
            let b2 = coopLoad<Right>(&w_tile[w_at + 2u * row_len], stride);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c12 = coopMultiplyAdd(a1, b2, c12);
            @if(TALL) c22 = coopMultiplyAdd(a2, b2, c22);
            @if(TALL) c32 = coopMultiplyAdd(a3, b2, c32);
            let b3 = coopLoad<Right>(&w_tile[w_at + 3u * row_len], stride);
            c03 = coopMultiplyAdd(a0, b3, c03);
            c13 = coopMultiplyAdd(a1, b3, c13);
            @if(TALL) c23 = coopMultiplyAdd(a2, b3, c23);
            @if(TALL) c33 = coopMultiplyAdd(a3, b3, c33);
        }
        workgroupBarrier();
    }
    var sums: Sums;
    let first = part * BATCH + down * EDGE * SUM_STRIDE + across * (EDGE / 2u);
    store_sums(c00, c01, first);
    take_sums(&sums, 0u, 0u, thread);
    store_sums(c02, c03, first);
    take_sums(&sums, 0u, 1u, thread);
    store_sums(c10, c11, first);
    take_sums(&sums, 1u, 0u, thread);
    store_sums(c12, c13, first);
    take_sums(&sums, 1u, 1u, thread);
    @if(TALL)
    store_sums(c20, c21, first);
    take_sums(&sums, 2u, 0u, thread);
    store_sums(c22, c23, first);
    take_sums(&sums, 2u, 1u, thread);
    store_sums(c30, c31, first);
    take_sums(&sums, 3u, 0u, thread);
    store_sums(c32, c33, first);
    take_sums(&sums, 3u, 1u, thread);
    @end
    return scaled(sums, col0, thread);
}
