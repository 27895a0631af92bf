// Conversion of f32 to the plan's storage type: y = x, both [rows, c]. The host side is kernels/src/cast.rs. Each
// invocation converts one vec4.
#import grid

struct Params {
    vec4s: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [rows, c]
@group(0) @binding(2) var<storage, read_write> y: array<Pack>; // [rows, c]

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.vec4s { return; }
    y[at] = store4(x[at]);
}
