// LayerNorm: y = (x - mean) / sqrt(variance + eps) * weight + bias, row by row. The host side is
// kernels/src/layer_norm.rs.
//
// Operands: x and y [rows, c], weight and bias [c]. One workgroup of 256 invocations handles one row.
#import grid
#import row_moments

struct Params {
    rows: u32,
    c: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [rows, c]
@group(0) @binding(2) var<storage, read> weight: array<Pack>; // [c]
@group(0) @binding(3) var<storage, read> bias: array<Pack>; // [c]
@group(0) @binding(4) var<storage, read_write> y: array<Pack>; // [rows, c]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = flat_group(group, groups);
    if row >= params.rows { return; }
    let c4 = (params.c + 3u) / 4u;
    let moments = row_moments(row, thread);
    for (var i = thread; i < c4; i += 256u) {
        let v = (difference(row, i, moments.x) - moments.y) * moments.z;
        y[row * c4 + i] = store4(v * load4(weight[i]) + load4(bias[i]));
    }
}
