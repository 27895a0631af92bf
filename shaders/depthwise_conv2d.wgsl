// y = conv(x, w) + bias + shift, every channel on its own: see kernels/src/depthwise_conv2d.rs.
#import grid

struct Params {
    n: u32,
    h: u32,
    w: u32,
    oh: u32,
    ow: u32,
    c4: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [n, h, w, c]
@group(0) @binding(2) var<storage, read> w: array<Pack>; // [3, 3, c]
@group(0) @binding(3) var<storage, read> bias: array<Pack>; // [c]
@group(0) @binding(4) var<storage, read> shift: array<Pack>; // [n, c]
@group(0) @binding(5) var<storage, read_write> y: array<Pack>; // [n, oh, ow, c]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = flat_group(group, groups) * 256u + thread;
    let pixel = index / params.c4;
    let c4 = index % params.c4;
    let line = pixel / params.ow;
    let image = line / params.oh;
    if image >= params.n { return; }
    let top = line % params.oh * params.stride;
    let left = pixel % params.ow * params.stride;
    var v = vec4<f32>();
    for (var ky = 0u; ky < 3u; ky++) {
        // The line above the first wraps to a number beyond the last, and so does the column left of the first.
        if top + ky - 1u >= params.h { continue; }
        for (var kx = 0u; kx < 3u; kx++) {
            if left + kx - 1u >= params.w { continue; }
            let source = (image * params.h + top + ky - 1u) * params.w + left + kx - 1u;
            v += load4(x[source * params.c4 + c4]) * load4(w[(ky * 3u + kx) * params.c4 + c4]);
        }
    }
    if HAS_BIAS == 1u { v += load4(bias[c4]); }
    if HAS_SHIFT == 1u { v += load4(shift[image * params.c4 + c4]); }
    y[index] = store4(v);
}
