// Concatenation along the channels: y = [a | b]. The host side is kernels/src/concat.rs.
//
// Operands: a [rows, a_channels], b [rows, b_channels], y [rows, a_channels + b_channels]. Each invocation writes one
// vec4 of y. If a_channels is a multiple of four (ALIGNED), this is a copy of a whole vec4; otherwise it is assembled
// from channels.
#import grid

struct Params {
    vec4s: u32, // of y
    y4: u32,
    a_channels: u32,
    b_channels: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Pack>; // [rows, a_channels]
@group(0) @binding(2) var<storage, read> b: array<Pack>; // [rows, b_channels]
@group(0) @binding(3) var<storage, read_write> y: array<Pack>; // [rows, a_channels + b_channels]

// Returns channel `c` of a row of y, and zero in the padding.
fn channel(row: u32, c: u32) -> f32 {
    if c < params.a_channels {
        return load4(a[row * ((params.a_channels + 3u) / 4u) + c / 4u])[c % 4u];
    }
    let of_b = c - params.a_channels;
    if of_b < params.b_channels {
        return load4(b[row * ((params.b_channels + 3u) / 4u) + of_b / 4u])[of_b % 4u];
    }
    return 0.0;
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
    if ALIGNED == 1u {
        // Copying b also copies its padding, which is the padding of y.
        let a4 = params.a_channels / 4u;
        if c4 < a4 {
            y[at] = a[row * a4 + c4];
        } else {
            y[at] = b[row * (params.y4 - a4) + c4 - a4];
        }
    } else {
        let c = 4u * c4;
        y[at] = store4(vec4<f32>(channel(row, c), channel(row, c + 1u), channel(row, c + 2u), channel(row, c + 3u)));
    }
}
