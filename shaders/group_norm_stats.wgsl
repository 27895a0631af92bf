// Statistics of a GroupNorm: (mean, 1 / sqrt(variance + eps)) of every group of every image. The host side is
// kernels/src/group_norm_stats.rs.
//
// Operands: x [n, positions, c], stats [n, groups, 2]. One workgroup of 256 invocations handles one group of one image:
// each invocation gathers count, mean and squares of its share in one pass, and a tree in workgroup memory merges them.
#import grid

struct Params {
    n: u32,
    positions: u32,
    c4: u32,
    groups: u32,
    per_group: u32,
    eps: f32,
}

// Count, mean and sum of squared differences from the mean of a set of values.
struct Moments {
    count: f32,
    mean: f32,
    squares: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [n, positions, c]
@group(0) @binding(2) var<storage, read_write> stats: array<vec4<f32>>; // [n, groups, 2]

var<workgroup> partial: array<Moments, 256>;

// Returns the moments of the union of two sets, by the formula of Chan, Golub and LeVeque.
fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let delta = b.mean - a.mean;
    let share = b.count / max(count, 1.0);
    return Moments(count, a.mean + delta * share, a.squares + b.squares + delta * delta * a.count * share);
}

// Returns the moments of this invocation's share of channels `first..end`: every 256th of the vec4s that contain some
// of them. Sums are relative to the first value read, so that a large mean does not cancel digits of the variance.
fn gather(image: u32, first: u32, end: u32, thread: u32) -> Moments {
    let first4 = first / 4u;
    let width4 = (end + 3u) / 4u - first4;
    let lanes = vec4<u32>(0u, 1u, 2u, 3u);
    var origin = 0.0;
    var count = 0.0;
    var sum = 0.0;
    var squares = 0.0;
    for (var i = thread; i < params.positions * width4; i += 256u) {
        let c4 = first4 + i % width4;
        let v = load4(x[(image * params.positions + i / width4) * params.c4 + c4]);
        let channels = 4u * c4 + lanes;
        let mine = (channels >= vec4<u32>(first)) & (channels < vec4<u32>(end));
        if i == thread { origin = v[max(first, 4u * c4) - 4u * c4]; }
        let d = select(vec4<f32>(0.0), v - origin, mine);
        count += dot(vec4<f32>(mine), vec4<f32>(1.0));
        sum += dot(d, vec4<f32>(1.0));
        squares += dot(d, d);
    }
    let shifted = sum / max(count, 1.0);
    return Moments(count, origin + shifted, max(squares - shifted * sum, 0.0));
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = flat_group(group, groups);
    if index >= params.n * params.groups { return; }
    let first = index % params.groups * params.per_group;
    partial[thread] = gather(index / params.groups, first, first + params.per_group, thread);
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if thread < half { partial[thread] = merge(partial[thread], partial[thread + half]); }
        workgroupBarrier();
    }
    if thread == 0u {
        let variance = partial[0].squares / partial[0].count;
        stats[index] = vec4<f32>(partial[0].mean, 1.0 / sqrt(variance + params.eps), 0.0, 0.0);
    }
}
