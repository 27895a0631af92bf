// Two linear layers of the same input: q = x w_q^T and kv = x w_kv^T, with x read once. The host side is
// kernels/src/shared_kv_projection.rs.
//
// Operands: x [rows, k], w_q [q_cols, k], w_kv [kv_cols, k], q [rows, q_cols], kv [rows, kv_cols]. x may be
// concatenated with x2 along k, and normalised on the way (common/prologue.wgsl). A workgroup computes a tile of
// common/gemm.wgsl, the left half of whose columns belongs to q and the right half to kv: both share the staged rows of
// x. Each invocation has two vec4s of columns, one of q and one of kv.
#import grid
@if(!MATRIX) #import gemm
@if(MATRIX) #import gemm_matrix
#import rows

struct Params {
    rows: u32,
    q_cols: u32,
    kv_cols: u32,
    k4: u32,
    first4: u32,
    positions: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Input>; // [rows, k], less the channels of x2
@group(0) @binding(2) var<storage, read> w_q: array<WeightPack>; // [q_cols, k]
@group(0) @binding(3) var<storage, read> w_kv: array<WeightPack>; // [kv_cols, k]
@if(HAS_X2) @group(0) @binding(4) var<storage, read> x2: array<Pack>; // [rows, the rest of k]
@if(NORM_ROWS) @group(0) @binding(5) var<storage, read> stats: array<vec4<f32>>; // [rows, 2]
@if(NORM_ROWS) @group(0) @binding(6) var<storage, read> norm_weight: array<Pack>; // [k]
@if(NORM_ROWS) @group(0) @binding(7) var<storage, read> norm_bias: array<Pack>; // [k]
@if(NORM_CHANNELS) @group(0) @binding(8) var<storage, read> norm: array<vec4<f32>>; // [images, 2, k]
@group(0) @binding(9) var<storage, read_write> q: array<Pack>; // [rows, q_cols]
@group(0) @binding(10) var<storage, read_write> kv: array<Pack>; // [rows, kv_cols]

// Number of columns of a tile that belong to q; as many more belong to kv.
const HALF = 4u * THREADS_X;

// Loads entry `i` of the weights of column `col` of the tile, clamped to the last column of its product.
fn weight_at(col0: u32, col: u32, i: u32, of_q: bool) -> WeightPack {
    let own = col0 + col % HALF;
    if of_q { return w_q[weight_row(min(own, params.q_cols - 1u), params.k4) + i]; }
    return w_kv[weight_row(min(own, params.kv_cols - 1u), params.k4) + i];
}

// Loads vec4 `k4` of the weights of column `first + at` of the tile.
fn fetch_w(col0: u32, first: u32, at: u32, k4: u32) -> WeightPack {
    // With SPAN <= HALF, `first` alone decides which product a slot belongs to. It is constant, so there is no branch
    // before the load.
    let of_q = select(first + at < HALF, first < HALF, SPAN <= HALF);
    return weight_at(col0, first + at, WEIGHT_HEAD + k4, of_q);
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
    let q_cols4 = (params.q_cols + 3u) / 4u;
    let kv_cols4 = (params.kv_cols + 3u) / 4u;
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    if thread >= LAYER { return; }
    for (var i = 0u; i < ROWS_EACH; i++) {
        if row + i >= params.rows { return; }
        if col4 < q_cols4 { q[(row + i) * q_cols4 + col4] = store4(without_padding(sums[2u * i], col4, params.q_cols)); }
        if col4 < kv_cols4 { kv[(row + i) * kv_cols4 + col4] = store4(without_padding(sums[2u * i + 1u], col4, params.kv_cols)); }
    }
}
