// Step of the one-step model: y = x0, the clean latent, or with RENOISE y = a_next * x0 + s_next * noise. The host side
// is kernels/src/one_step_x0.rs.
//
// Operands: latent, prediction, noise and y [images, positions, c], all f32. The coefficients of the step are read from
// a buffer. Each invocation computes one vec4 of y.
#import grid
#import prediction

struct Params {
    vec4s: u32, // of y
    kind: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> latent: array<vec4<f32>>; // [images, positions, c]
@group(0) @binding(2) var<storage, read> prediction: array<vec4<f32>>; // [images, positions, c]
@group(0) @binding(3) var<storage, read> coefficients: array<vec4<f32>>; // (a, s, a_next, s_next)
@if(RENOISE) @group(0) @binding(4) var<storage, read> noise: array<vec4<f32>>; // [images, positions, c]
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>; // [images, positions, c]

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.vec4s { return; }
    let step = coefficients[0];
    var next = predicted_x0(params.kind, prediction[at], latent[at], step.x, step.y);
    @if(RENOISE) next = step.z * next + step.w * noise[at];
    y[at] = next;
}
