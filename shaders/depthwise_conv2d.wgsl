// y = conv(x, w) + bias + shift, every channel on its own: see kernels/src/depthwise_conv2d.rs.
//
// A workgroup takes 64 channels of 64 positions, an invocation four of each.
#import grid
#import source
#import tile_moments

struct Params {
    n: u32,
    h: u32,
    w: u32,
    oh: u32,
    ow: u32,
    c4: u32,
    stride: u32,
    first4: u32,
    positions: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Input>; // [n, h, w, c], less the channels of x2
@group(0) @binding(2) var<storage, read> w: array<Pack>; // [3, 3, c]
@if(HAS_BIAS) @group(0) @binding(3) var<storage, read> bias: array<Pack>; // [c]
@if(HAS_SHIFT) @group(0) @binding(4) var<storage, read> shift: array<Pack>; // [n, c]
@if(HAS_X2) @group(0) @binding(5) var<storage, read> x2: array<Pack>; // [n, h, w, the rest of c]
@group(0) @binding(6) var<storage, read_write> y: array<Pack>; // [n, oh, ow, c]
@if(HAS_MOMENTS) @group(0) @binding(7) var<storage, read_write> moments: array<vec4<f32>>; // [tiles, 2, c]

fn convolved(pixel: u32, c4: u32) -> vec4<f32> {
    let line = pixel / params.ow;
    let image = line / params.oh;
    let top = line % params.oh * params.stride;
    let left = pixel % params.ow * params.stride;
    var v = vec4<f32>();
    for (var ky = 0u; ky < 3u; ky++) {
        // The line above the first wraps to a number beyond the last, and so does the column left of the first.
        if top + ky - 1u >= params.h { continue; }
        for (var kx = 0u; kx < 3u; kx++) {
            if left + kx - 1u >= params.w { continue; }
            let source = (image * params.h + top + ky - 1u) * params.w + left + kx - 1u;
            v += load_source(source, c4, params.c4) * load4(w[(ky * 3u + kx) * params.c4 + c4]);
        }
    }
    @if(HAS_BIAS) v += load4(bias[c4]);
    @if(HAS_SHIFT) v += load4(shift[image * params.c4 + c4]);
    return v;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile = row_tile(group, groups);
    let pixels = params.n * params.oh * params.ow;
    if tile * 64u >= pixels { return; }
    let count = min(64u, pixels - tile * 64u);
    let c4 = group.x * 16u + thread % 16u;
    @if(HAS_MOMENTS) var written = array<vec4<f32>, 4>();
    for (var i = 0u; i < 4u; i++) {
        let at = 4u * (thread / 16u) + i;
        if at >= count || c4 >= params.c4 { continue; }
        let pixel = tile * 64u + at;
        let v = convolved(pixel, c4);
        y[pixel * params.c4 + c4] = store4(v);
        @if(HAS_MOMENTS) written[i] = v;
    }
    @if(HAS_MOMENTS)
    let found = tile_moments(written, count, thread);
    if thread < 16u && c4 < params.c4 {
        moments[2u * tile * params.c4 + c4] = found.mean;
        moments[(2u * tile + 1u) * params.c4 + c4] = found.variance;
    }
    @end
}
