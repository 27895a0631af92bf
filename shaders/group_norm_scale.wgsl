// Scale and offset of every channel of a GroupNorm: scale = weight * rstd and offset = bias - mean * scale, so that
// applying the norm is one multiply-add. The host side is kernels/src/group_norm_scale.rs.
//
// Operands: norm [n, 2, c], scales first; weight and bias [c]. The statistics of the groups come from stats
// [n, groups, 2], or with FROM_MOMENTS are merged here from moments [tiles, 2, c] of single channels over tiles of 64
// positions. One workgroup of 256 invocations handles one group of one image.
#import grid
@if(FROM_MOMENTS) #import sum_all

struct Params {
    n: u32,
    positions: u32,
    tiles_per_image: u32,
    c: u32,
    groups: u32,
    per_group: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@if(!FROM_MOMENTS) @group(0) @binding(1) var<storage, read> stats: array<vec4<f32>>; // [n, groups, 2]
@if(FROM_MOMENTS) @group(0) @binding(2) var<storage, read> moments: array<f32>; // [tiles, 2, c]
@group(0) @binding(3) var<storage, read> weight: array<Pack>; // [c]
@group(0) @binding(4) var<storage, read> bias: array<Pack>; // [c]
@group(0) @binding(5) var<storage, read_write> norm: array<f32>; // [n, 2, c]

@if(FROM_MOMENTS) alias Summed = f32;

@if(FROM_MOMENTS)
// Number of tiles whose moments are loaded together.
const AT_ONCE = 4u;

// Returns the number of positions of a tile of an image: 64, fewer in the last tile, and 0 beyond it.
fn positions_of(tile: u32) -> f32 {
    return f32(min(64u, max(params.positions, 64u * tile) - 64u * tile));
}

// Returns mean and reciprocal standard deviation of a group, merged from the moments of its channels in every tile. The
// first pass computes the mean, relative to the mean of one tile; the second adds up variances and squared distances of
// the means. Computed this way, nothing cancels.
fn merged(image: u32, first: u32, thread: u32) -> vec2<f32> {
    let row = (params.c + 3u) / 4u * 4u;
    let base = image * params.tiles_per_image * 2u * row + first;
    let last = params.tiles_per_image - 1u;
    let total = f32(params.positions) * f32(params.per_group);
    // Neighbouring invocations take neighbouring channels, then the next tile. Invocations beyond the last whole tile
    // idle.
    let across = min(params.per_group, 256u);
    let step = 256u / across;
    let begin = select(params.tiles_per_image, thread / across, thread / across < step);
    let origin = moments[base];
    var means: array<f32, AT_ONCE>;
    var variances: array<f32, AT_ONCE>;
    var sum = 0.0;
    for (var c = thread % across; c < params.per_group; c += across) {
        for (var tile = begin; tile <= last; tile += AT_ONCE * step) {
            for (var t = 0u; t < AT_ONCE; t++) { means[t] = moments[base + 2u * min(tile + t * step, last) * row + c]; }
            for (var t = 0u; t < AT_ONCE; t++) { sum += positions_of(tile + t * step) * (means[t] - origin); }
        }
    }
    let shifted = sum_all(sum, thread) / total;
    var squares = 0.0;
    for (var c = thread % across; c < params.per_group; c += across) {
        for (var tile = begin; tile <= last; tile += AT_ONCE * step) {
            for (var t = 0u; t < AT_ONCE; t++) {
                let at = base + 2u * min(tile + t * step, last) * row + c;
                means[t] = moments[at];
                variances[t] = moments[at + row];
            }
            for (var t = 0u; t < AT_ONCE; t++) {
                let d = means[t] - origin - shifted;
                squares += positions_of(tile + t * step) * (variances[t] + d * d);
            }
        }
    }
    let variance = sum_all(squares, thread) / total;
    return vec2<f32>(origin + shifted, 1.0 / sqrt(variance + params.eps));
}
@end

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = flat_group(group, groups);
    if index >= params.n * params.groups { return; }
    let image = index / params.groups;
    let of_image = index % params.groups;
    let first = of_image * params.per_group;
    @if(!FROM_MOMENTS) let s = stats[index].xy;
    @if(FROM_MOMENTS) let s = merged(image, first, thread);
    let row = (params.c + 3u) / 4u * 4u;
    let base = image * 2u * row;
    for (var c = first + thread; c < first + params.per_group; c += 256u) {
        let w = load4(weight[c / 4u]);
        let b = load4(bias[c / 4u]);
        let scale = s.y * w[c % 4u];
        norm[base + c] = scale;
        norm[base + row + c] = b[c % 4u] - s.x * scale;
    }
    // The last group also writes zeros to the padding of the row.
    if of_image + 1u == params.groups && thread < row - params.c {
        norm[base + params.c + thread] = 0.0;
        norm[base + row + params.c + thread] = 0.0;
    }
}
