// GroupNorm with given scales and offsets: y = activation(x * scale + offset). The host side is
// kernels/src/group_norm.rs.
//
// Operands: x and y [rows, c], norm [images, 2, 4 * norm4] from group_norm_scale.wgsl, scales first; those of x begin at
// vec4 `before4`. x may be concatenated with x2 along the channels. Each invocation computes one vec4;
// common/prologue.wgsl does the arithmetic. With IN_PLACE, y has the memory of x and goes by that name.
#import grid
#import prologue

struct Params {
    rows: u32,
    c4: u32,
    first4: u32,
    positions: u32,
    before4: u32,
    norm4: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@if(!IN_PLACE) @group(0) @binding(1) var<storage, read> x: array<Input>; // [rows, c], less the channels of x2
@if(HAS_X2) @group(0) @binding(2) var<storage, read> x2: array<Pack>; // [rows, the rest of c]
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>; // [images, 2, norm4]
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
    let k4 = at - row * params.c4;
    let of_norm = params.before4 + k4;
    fetch_norm(of_norm, params.norm4);
    let fetched = fetch_source(row, k4, params.c4, is_second(k4));
    let v = store4(made(fetched, row_norm(row, params.norm4), of_norm, params.norm4));
    @if(!IN_PLACE) y[at] = v;
    @if(IN_PLACE) x[at] = v;
}
