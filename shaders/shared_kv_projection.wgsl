// q = x * w_q^T and kv = x * w_kv^T, x read once: see kernels/src/shared_kv_projection.rs.
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

// Columns of a tile: queries first, then keys and values.
const HALF = 4u * THREADS_X;

// Of a column's weights, or of those of the last that there is, the one at `i`.
fn weight_at(col0: u32, col: u32, i: u32, of_q: bool) -> WeightPack {
    let own = col0 + col % HALF;
    if of_q { return w_q[weight_row(min(own, params.q_cols - 1u), params.k4) + i]; }
    return w_kv[weight_row(min(own, params.kv_cols - 1u), params.k4) + i];
}

fn fetch_w(col0: u32, first: u32, at: u32, k4: u32) -> WeightPack {
    // Slots that hold columns of one product only are known by `first` alone: no branch on the way to a load.
    let of_q = select(first + at < HALF, first < HALF, SPAN <= HALF);
    return weight_at(col0, first + at, WEIGHT_HEAD + k4, of_q);
}

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
