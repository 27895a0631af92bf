// Slice along the channels: y = scale * x[first..first + c]. The host side is kernels/src/slice.rs.
//
// Operands: x [rows, channels], y [rows, c]. Each invocation computes one vec4 of y. With ALIGNED it reads a whole vec4
// of x; otherwise it assembles the vec4 from channels.
#import grid

struct Params {
    vec4s: u32, // of y
    x4: u32,
    y4: u32,
    first: u32,
    c: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [rows, channels]
@group(0) @binding(2) var<storage, read_write> y: array<Pack>; // [rows, c]

// Returns channel `c` of a row of y, and zero in the padding.
fn channel(row: u32, c: u32) -> f32 {
    if c >= params.c { return 0.0; }
    let of_x = params.first + c;
    return params.scale * load4(x[row * params.x4 + of_x / 4u])[of_x % 4u];
}

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.vec4s { return; }
    let row = at / params.y4;
    let c4 = at % params.y4;
    var v: vec4<f32>;
    if ALIGNED == 1u {
        v = params.scale * load4(x[row * params.x4 + params.first / 4u + c4]);
    } else {
        let c = 4u * c4;
        v = vec4<f32>(channel(row, c), channel(row, c + 1u), channel(row, c + 2u), channel(row, c + 3u));
    }
    y[at] = store4(v);
}
