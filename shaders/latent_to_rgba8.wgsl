// y = the pixel of x in [-1, 1] as four bytes: see kernels/src/latent_to_rgba8.rs.
#import grid

struct Params {
    pixels: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [n, h, w, 3]
@group(0) @binding(2) var<storage, read_write> y: array<u32>; // [n, h, w]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_group(group, groups) * 64u + thread;
    if at >= params.pixels { return; }
    let color = load4(x[at]).xyz;
    // By its bits: a compiler may assume that no float is NaN.
    let exponent = bitcast<vec3<u32>>(color) & vec3<u32>(0x7f800000u);
    let alpha = select(0u, 255u, all(exponent != vec3<u32>(0x7f800000u)));
    let v = clamp(color, vec3<f32>(-1.0), vec3<f32>(1.0));
    // NaN becomes some byte, and no more than a byte.
    let bytes = min(vec3<u32>(floor(v * 127.5 + 128.0)), vec3<u32>(255u));
    y[at] = bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (alpha << 24u);
}
