// Activation: y = activation(scale * x), elementwise. The host side is kernels/src/activation.rs.
//
// Operands: x and y [rows, c], rows padded to whole vec4s. Each invocation computes one vec4 of y.
#import activation
#import grid

struct Params {
    vec4s: u32,
    c: u32,
    c4: u32,
    activation: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [rows, c]
@group(0) @binding(2) var<storage, read_write> y: array<Pack>; // [rows, c]

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.vec4s { return; }
    let v = activate(params.activation, params.scale * load4(x[at]));
    // The padding of a row has to remain +0, and a negative scale would turn it into -0.
    let c = vec4<u32>(4u * (at % params.c4)) + vec4<u32>(0u, 1u, 2u, 3u);
    y[at] = store4(select(vec4<f32>(0.0), v, c < vec4<u32>(params.c)));
}
