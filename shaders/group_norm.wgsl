// y = activation((x - mean) * rstd * weight + bias): see kernels/src/group_norm.rs.
#import activation
#import grid

struct Params {
    n: u32,
    positions: u32,
    c4: u32,
    groups: u32,
    per_group: u32,
    activation: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [n, positions, c]
@group(0) @binding(2) var<storage, read> stats: array<vec4<f32>>; // [n, groups, 2]
@group(0) @binding(3) var<storage, read> weight: array<Pack>; // [c]
@group(0) @binding(4) var<storage, read> bias: array<Pack>; // [c]
@group(0) @binding(5) var<storage, read_write> y: array<Pack>; // [n, positions, c]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = flat_group(group, groups) * 256u + thread;
    let c4 = index % params.c4;
    let image = index / params.c4 / params.positions;
    if image >= params.n { return; }
    var mean = vec4<f32>();
    var rstd = vec4<f32>();
    for (var lane = 0u; lane < 4u; lane++) {
        // Padding has weight and bias zero: any group will do.
        let of_channel = min((4u * c4 + lane) / params.per_group, params.groups - 1u);
        let s = stats[image * params.groups + of_channel];
        mean[lane] = s.x;
        rstd[lane] = s.y;
    }
    let v = (load4(x[index]) - mean) * rstd * load4(weight[c4]) + load4(bias[c4]);
    y[index] = store4(activate(params.activation, v));
}
