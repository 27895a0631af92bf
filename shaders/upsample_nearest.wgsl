// Nearest-neighbour upsampling by two: y[n, i, j] = x[n, i / 2, j / 2]. The host side is
// kernels/src/upsample_nearest.rs.
//
// Operands: x [n, h, w, c], y [n, 2h, 2w, c]. Each invocation copies one vec4 of y.
#import grid

struct Params {
    vec4s: u32, // of y
    w: u32, // of x
    c4: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [n, h, w, c]
@group(0) @binding(2) var<storage, read_write> y: array<Pack>; // [n, 2h, 2w, c]

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.vec4s { return; }
    let c4 = at % params.c4;
    let pixel = at / params.c4;
    let col = pixel % (2u * params.w);
    // Row counted over all images. Every image has an even number of rows, so half of it is the row of x.
    let row = pixel / (2u * params.w);
    y[at] = x[((row / 2u) * params.w + col / 2u) * params.c4 + c4];
}
