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
// Moments that an invocation holds at a time, AT_ONCE of them: those of one channel in one tile each, with the positions
// of the tile, or with none beyond the last tile.
var<private> means: array<f32, AT_ONCE>;
var<private> variances: array<f32, AT_ONCE>;
var<private> counts: array<f32, AT_ONCE>;

// Loads moments from `begin` on. A group's moments are numbered by tile, then channel, and neighbouring invocations load
// neighbouring ones. `base` is the place of the first.
fn load_moments(begin: u32, base: u32, row: u32) {
    let all = params.tiles_per_image * params.per_group;
    for (var i = 0u; i < AT_ONCE; i++) {
        let number = begin + 256u * i;
        let tile = min(number, all - 1u) / params.per_group;
        let at = base + 2u * tile * row + min(number, all - 1u) % params.per_group;
        means[i] = moments[at];
        variances[i] = moments[at + row];
        counts[i] = select(0.0, f32(min(64u, params.positions - 64u * tile)), number < all);
    }
}

// Returns mean and reciprocal standard deviation of a group, merged from the moments of its channels in every tile. The
// first pass computes the mean, relative to the mean of one tile; the second adds up variances and squared distances of
// the means. Computed this way, nothing cancels. The first pass ends with the moments that the second begins with, so
// that nothing is loaded twice if they are all that there are.
fn merged(image: u32, first: u32, thread: u32) -> vec2<f32> {
    let row = (params.c + 3u) / 4u * 4u;
    let base = image * params.tiles_per_image * 2u * row + first;
    let total = f32(params.positions) * f32(params.per_group);
    let step = 256u * AT_ONCE;
    let rounds = (params.tiles_per_image * params.per_group + step - 1u) / step;
    let origin = moments[base];
    var sum = 0.0;
    for (var round = rounds; round > 0u; round--) {
        load_moments((round - 1u) * step + thread, base, row);
        for (var i = 0u; i < AT_ONCE; i++) { sum += counts[i] * (means[i] - origin); }
    }
    let shifted = sum_all(sum, thread) / total;
    var squares = 0.0;
    for (var round = 0u; round < rounds; round++) {
        if round > 0u { load_moments(round * step + thread, base, row); }
        for (var i = 0u; i < AT_ONCE; i++) {
            let d = means[i] - origin - shifted;
            squares += counts[i] * (variances[i] + d * d);
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
