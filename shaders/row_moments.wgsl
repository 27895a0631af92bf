// Mean and variance of every row over every block of 32 channels, from which kernels that normalise as they read
// compute the statistics of a LayerNorm. The host side is kernels/src/row_moments.rs.
//
// Operands: x [rows, cols], row_moments [rows, 2, blocks], means first. A workgroup of 256 invocations takes two
// blocks of 64 rows, and an invocation one vec4 of channels of four rows.
#import grid
#import block_moments

struct Params {
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [rows, cols]
@group(0) @binding(2) var<storage, read_write> row_moments: array<f32>; // [rows, 2, blocks]

@compute @workgroup_size(LAYER)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile = row_tile(group, groups) * TILE_ROWS;
    if tile >= params.rows { return; }
    let cols4 = (params.cols + 3u) / 4u;
    let tile4 = group.x * TILE_QUADS;
    let row0 = tile + ROWS_EACH * (thread / THREADS_X);
    let col4 = tile4 + thread % THREADS_X;
    var values: Sums;
    // Loads have no branches: indices are clamped, and out-of-range values are replaced by zeros below.
    for (var i = 0u; i < ROWS_EACH; i++) {
        values[i] = load4(x[min(row0 + i, params.rows - 1u) * cols4 + min(col4, cols4 - 1u)]);
    }
    let inside = 4u * col4 + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols);
    for (var i = 0u; i < ROWS_EACH; i++) { values[i] = select(vec4<f32>(0.0), values[i], inside); }
    write_row_moments(&values, row0, tile4, thread);
}
