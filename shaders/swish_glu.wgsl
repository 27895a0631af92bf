// Gated linear unit: y = a * gate(g), where a and g are the left and the right half of x w^T + bias. The host side is
// kernels/src/swish_glu.rs.
//
// Operands: x [rows, k], w [2 * cols, k], bias [2 * cols], y [rows, cols]. x may be concatenated with x2 along k, and
// normalised on the way (common/prologue.wgsl). A workgroup computes a tile of common/gemm.wgsl, the left half of whose
// columns are columns of a and the right half the same columns of g. Each invocation has two vec4s of columns, one of a
// and the matching one of g, so that the gate needs no exchange between invocations and the wide product is never
// written.
#import grid
#import activation
@if(!MATRIX) #import gemm
@if(MATRIX) #import gemm_matrix
#import rows

struct Params {
    first_row_tile: u32,
    rows: u32,
    cols: u32,
    k4: u32,
    cols4: u32,
    first4: u32,
    positions: u32,
    @if(NORM_ROWS) channels: u32,
    @if(NORM_ROWS) eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Input>; // [rows, k], less the channels of x2
@group(0) @binding(2) var<storage, read> w: array<WeightPack>; // [2 * cols, k]
@group(0) @binding(3) var<storage, read> bias: array<Pack>; // [2 * cols]
@if(HAS_X2) @group(0) @binding(4) var<storage, read> x2: array<Pack>; // [rows, the rest of k]
@if(NORM_ROWS) @group(0) @binding(5) var<storage, read> stats: array<vec4<f32>>; // [rows, 2, k / 32]
@if(NORM_ROWS) @group(0) @binding(6) var<storage, read> norm_weight: array<Pack>; // [k]
@if(NORM_ROWS) @group(0) @binding(7) var<storage, read> norm_bias: array<Pack>; // [k]
@if(NORM_CHANNELS) @group(0) @binding(8) var<storage, read> norm: array<vec4<f32>>; // [images, 2, k]
@group(0) @binding(9) var<storage, read_write> y: array<Pack>; // [rows, cols]

// Number of columns of a tile that belong to a; as many more belong to g.
const HALF = 4u * THREADS_X;

// Returns the index in w of the weights of column `col` of the tile, clamped to the last column of its half.
fn first_weight(col0: u32, col: u32) -> u32 {
    return weight_row(col / HALF * params.cols + min(col0 + col % HALF, params.cols - 1u), params.k4);
}

// Loads vec4 `k4` of the weights of column `first + at` of the tile.
fn fetch_w(col0: u32, first: u32, at: u32, k4: u32) -> WeightPack {
    return w[first_weight(col0, first + at) + WEIGHT_HEAD + k4];
}

// Loads the scale of column `col` of the tile.
fn fetch_scale(col0: u32, col: u32) -> WeightPack { return w[first_weight(col0, col)]; }

// Loads the biases of four columns from `col` of the half that begins at `first`, clamped to the last columns.
fn bias4(first: u32, col: u32) -> vec4<f32> {
    if params.cols % 4u == 0u { return load4(bias[(first + min(col, params.cols - 4u)) / 4u]); }
    // The second half does not begin at a whole vec4.
    var v = vec4<f32>(0.0);
    for (var lane = 0u; lane < 4u; lane++) {
        let index = first + min(col + lane, params.cols - 1u);
        v[lane] = load4(bias[index / 4u])[index % 4u];
    }
    return v;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = (params.first_row_tile + row_tile(group, groups)) * TILE_ROWS;
    if row0 >= params.rows { return; }
    var sums = gemm_tile(row0, group.x * HALF, 0u, params.k4, thread);
    let col4 = group.x * THREADS_X + thread % THREADS_X;
    if thread >= LAYER || col4 >= params.cols4 { return; }
    let bias_a = bias4(0u, 4u * col4);
    let bias_g = bias4(params.cols, 4u * col4);
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    for (var i = 0u; i < ROWS_EACH; i++) {
        if row + i >= params.rows { return; }
        let gate = activate(GATE, sums[2u * i + 1u] + bias_g);
        y[(row + i) * params.cols4 + col4] = store4(without_padding((sums[2u * i] + bias_a) * gate, col4, params.cols));
    }
}
