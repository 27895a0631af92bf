// GroupNorm with given scales and offsets: y = activation(x * scale + offset). The host side is
// kernels/src/group_norm.rs.
//
// Operands: x and y [rows, c], norm [images, 2, c] from group_norm_scale.wgsl, scales first. x may be concatenated with
// x2 along the channels. Each invocation computes one vec4; common/prologue.wgsl does the arithmetic. With IN_PLACE, y has
// the memory of x and goes by that name.
#import grid
#import prologue

struct Params {
    rows: u32,
    c4: u32,
    first4: u32,
    positions: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@if(!IN_PLACE) @group(0) @binding(1) var<storage, read> x: array<Input>; // [rows, c], less the channels of x2
@if(HAS_X2) @group(0) @binding(2) var<storage, read> x2: array<Pack>; // [rows, the rest of c]
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>; // [images, 2, c]
@if(!IN_PLACE) @group(0) @binding(4) var<storage, read_write> y: array<Pack>; // [rows, c]
@if(IN_PLACE) @group(0) @binding(4) var<storage, read_write> x: array<Pack>; // [rows, c]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_group(group, groups) * 256u + thread;
    if at >= params.rows * params.c4 { return; }
    let row = at / params.c4;
    let v = store4(load_source(row, at - row * params.c4, params.c4));
    @if(!IN_PLACE) y[at] = v;
    @if(IN_PLACE) x[at] = v;
}
