// Two linear layers of the same input: a = x w_a^T and b = x w_b^T, with x read once. The host side is
// kernels/src/linear_pair.rs.
//
// Operands: x [rows, k], w_a [a_cols, k], w_b [b_cols, k], a [rows, a_cols], b [rows, b_cols]. x may be concatenated
// with x2 along k, and normalised on the way (common/prologue.wgsl). A workgroup computes a tile of common/gemm.wgsl,
// the left half of whose columns belongs to a and the right half to b: both share the staged rows of x. Each invocation
// has two vec4s of columns, one of a and one of b.
#import grid
@if(!MATRIX) #import gemm
@if(MATRIX) #import gemm_matrix
#import rows

struct Params {
    rows: u32,
    a_cols: u32,
    b_cols: u32,
    k4: u32,
    first4: u32,
    positions: u32,
    @if(NORM_ROWS) channels: u32,
    @if(NORM_ROWS) eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Input>; // [rows, k], less the channels of x2
@group(0) @binding(2) var<storage, read> w_a: array<WeightPack>; // [a_cols, k]
@group(0) @binding(3) var<storage, read> w_b: array<WeightPack>; // [b_cols, k]
@if(HAS_X2) @group(0) @binding(4) var<storage, read> x2: array<Pack>; // [rows, the rest of k]
@if(NORM_ROWS) @group(0) @binding(5) var<storage, read> stats: array<vec4<f32>>; // [rows, 2, k / 32]
@if(NORM_ROWS) @group(0) @binding(6) var<storage, read> norm_weight: array<Pack>; // [k]
@if(NORM_ROWS) @group(0) @binding(7) var<storage, read> norm_bias: array<Pack>; // [k]
@if(NORM_CHANNELS) @group(0) @binding(8) var<storage, read> norm: array<vec4<f32>>; // [images, 2, k]
@group(0) @binding(9) var<storage, read_write> a: array<Pack>; // [rows, a_cols]
@group(0) @binding(10) var<storage, read_write> b: array<Pack>; // [rows, b_cols]

// Number of columns of a tile that belong to a; as many more belong to b.
const HALF = 4u * THREADS_X;

// Loads entry `i` of the weights of column `col` of the tile, clamped to the last column of its product.
fn weight_at(col0: u32, col: u32, i: u32, of_a: bool) -> WeightPack {
    let own = col0 + col % HALF;
    if of_a { return w_a[weight_row(min(own, params.a_cols - 1u), params.k4) + i]; }
    return w_b[weight_row(min(own, params.b_cols - 1u), params.k4) + i];
}

// Loads vec4 `k4` of the weights of column `first + at` of the tile.
fn fetch_w(col0: u32, first: u32, at: u32, k4: u32) -> WeightPack {
    // With SPAN <= HALF, `first` alone decides which product a slot belongs to. It is constant, so there is no branch
    // before the load.
    let of_a = select(first + at < HALF, first < HALF, SPAN <= HALF);
    return weight_at(col0, first + at, WEIGHT_HEAD + k4, of_a);
}

// Loads the scale of column `col` of the tile.
fn fetch_scale(col0: u32, col: u32) -> WeightPack { return weight_at(col0, col, 0u, col < HALF); }

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = row_tile(group, groups) * TILE_ROWS;
    if row0 >= params.rows { return; }
    var sums = gemm_tile(row0, group.x * HALF, 0u, params.k4, thread);
    let col4 = group.x * THREADS_X + thread % THREADS_X;
    let a_cols4 = (params.a_cols + 3u) / 4u;
    let b_cols4 = (params.b_cols + 3u) / 4u;
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    if thread >= LAYER { return; }
    for (var i = 0u; i < ROWS_EACH; i++) {
        if row + i >= params.rows { return; }
        if col4 < a_cols4 { a[(row + i) * a_cols4 + col4] = store4(without_padding(sums[2u * i], col4, params.a_cols)); }
        if col4 < b_cols4 { b[(row + i) * b_cols4 + col4] = store4(without_padding(sums[2u * i + 1u], col4, params.b_cols)); }
    }
}
