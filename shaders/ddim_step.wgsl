// One step of a sampler with classifier-free guidance: y = a_next * x0 + direction * e + sigma * noise, where x0 and the
// noise e are derived from the network's prediction. The host side is kernels/src/ddim_step.rs.
//
// Operands: latent, prediction and y [b, positions, c], all f32. With GUIDED the batch has two halves, the first
// without text and the second with it. The prediction is p_u + guidance * (p_c - p_u), where p_u is from the first half
// and p_c from the second, and both halves of y receive the result. The coefficients of the step are read from a
// buffer. Each invocation computes one vec4 of a half.
#import grid
#import prediction

struct Params {
    vec4s: u32, // of a half
    kind: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> latent: array<vec4<f32>>; // [b, positions, c]
@group(0) @binding(2) var<storage, read> prediction: array<vec4<f32>>; // [b, positions, c]
@group(0) @binding(3) var<storage, read> coefficients: array<vec4<f32>>; // (a, s, a_next, direction), (guidance, sigma)
@if(HAS_NOISE) @group(0) @binding(4) var<storage, read> noise: array<vec4<f32>>; // [images, positions, c]
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>; // [b, positions, c]

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.vec4s { return; }
    let step = coefficients[0];
    let more = coefficients[1];
    let z = latent[at];
    var p = prediction[at];
    if GUIDED == 1u { p += more.x * (prediction[params.vec4s + at] - p); }
    let x0 = predicted_x0(params.kind, p, z, step.x, step.y);
    let e = predicted_noise(params.kind, p, z, step.x, step.y);
    var next = step.z * x0 + step.w * e;
    @if(HAS_NOISE) next += more.y * noise[at];
    y[at] = next;
    if GUIDED == 1u { y[params.vec4s + at] = next; }
}
