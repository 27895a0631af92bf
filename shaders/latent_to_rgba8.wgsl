// Conversion of the decoder's output to pixels: [-1, 1] becomes 0..255 per channel. The host side is
// kernels/src/latent_to_rgba8.rs.
//
// Operands: x [n, h, w, 3], y [n, h, w] with one RGBA pixel of four bytes in each u32. Each invocation converts one
// pixel. The alpha of a pixel is 255, or 0 if one of its channels is NaN or beyond the range of f16, at
// whose ends stores in f16 saturate.
#import grid

struct Params {
    pixels: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [n, h, w, 3]
@group(0) @binding(2) var<storage, read_write> y: array<u32>; // [n, h, w]

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.pixels { return; }
    let color = load4(x[at]).xyz;
    // Compared by bits, because compilers may assume that no float is NaN. Those of 65504 are the smallest of a value
    // that counts as not finite.
    let magnitude = bitcast<vec3<u32>>(color) & vec3<u32>(0x7fffffffu);
    let alpha = select(0u, 255u, all(magnitude < vec3<u32>(0x477fe000u)));
    let v = clamp(color, vec3<f32>(-1.0), vec3<f32>(1.0));
    // The colour of a NaN is undefined; min keeps it within its byte.
    let bytes = min(vec3<u32>(floor(v * 127.5 + 128.0)), vec3<u32>(255u));
    y[at] = bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (alpha << 24u);
}
