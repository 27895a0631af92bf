// Statistics of a LayerNorm: (mean, 1 / sqrt(variance + eps)) of every row, for kernels that normalise as they read.
// The host side is kernels/src/layer_norm_stats.rs.
//
// Operands: x [rows, c], stats [rows, 2]. One workgroup of 256 invocations handles one row.
#import grid
#import row_moments

struct Params {
    rows: u32,
    c: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [rows, c]
@group(0) @binding(2) var<storage, read_write> stats: array<vec4<f32>>; // [rows, 2]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = flat_group(group, groups);
    if row >= params.rows { return; }
    let moments = row_moments(row, thread);
    if thread == 0u { stats[row] = vec4<f32>(moments.x + moments.y, moments.z, 0.0, 0.0); }
}
