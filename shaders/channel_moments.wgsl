// Mean and variance of every channel over every tile of 64 positions, from which group_norm_scale.wgsl computes the
// statistics of a GroupNorm. The host side is kernels/src/channel_moments.rs.
//
// Operands: x [n, positions, c], moments [tiles, 2, c], means first. x may be concatenated with x2 along the channels.
// A workgroup of 256 invocations takes 64 channels of one tile, and an invocation one vec4 of channels of four
// positions.
#import grid
#import tile_moments
#import prologue

struct Params {
    tiles: u32,
    tiles_per_image: u32,
    c4: u32,
    first4: u32,
    positions: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Input>; // [n, positions, c], less the channels of x2
@if(HAS_X2) @group(0) @binding(2) var<storage, read> x2: array<Pack>; // [n, positions, the rest of c]
@group(0) @binding(3) var<storage, read_write> moments: array<vec4<f32>>; // [tiles, 2, c]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile = row_tile(group, groups);
    if tile >= params.tiles { return; }
    let c4 = group.x * 16u + thread % 16u;
    let position0 = tile % params.tiles_per_image * 64u;
    let count = min(64u, params.positions - position0);
    let row0 = tile / params.tiles_per_image * params.positions + position0;
    var values: array<vec4<f32>, 4>;
    // Loads have no branches: indices are clamped, and out-of-range values are replaced by zeros below.
    for (var i = 0u; i < 4u; i++) {
        let at = min(4u * (thread / 16u) + i, count - 1u);
        values[i] = load_source(row0 + at, min(c4, params.c4 - 1u), params.c4);
    }
    for (var i = 0u; i < 4u; i++) {
        values[i] = select(vec4<f32>(0.0), values[i], 4u * (thread / 16u) + i < count);
    }
    let found = tile_moments(values, count, thread);
    if thread < 16u && c4 < params.c4 {
        moments[2u * tile * params.c4 + c4] = found.mean;
        moments[(2u * tile + 1u) * params.c4 + c4] = found.variance;
    }
}
