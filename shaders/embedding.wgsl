// Token and position embedding: y[n, i] = token[ids[n, i]] + position[i]. The host side is kernels/src/embedding.rs.
//
// Operands: ids [n, l], token [vocab, c], position [positions, c], y [n, l, c]. With HAS_REST the token table is split
// over two buffers, and token_rest has the rows from `first_rows` on. Each invocation computes one vec4 of y.
#import grid

struct Params {
    vec4s: u32, // of y
    l: u32,
    c4: u32,
    last_id: u32,
    first_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>; // [n, l]
@group(0) @binding(2) var<storage, read> token: array<Pack>; // [first_rows, c]
@if(HAS_REST) @group(0) @binding(3) var<storage, read> token_rest: array<Pack>; // [vocab - first_rows, c]
@group(0) @binding(4) var<storage, read> position: array<Pack>; // [positions, c]
@group(0) @binding(5) var<storage, read_write> y: array<Pack>; // [n, l, c]

// Loads vec4 `c4` of the embedding of a token.
fn token_at(id: u32, c4: u32) -> vec4<f32> {
    @if(HAS_REST) if id >= params.first_rows { return load4(token_rest[(id - params.first_rows) * params.c4 + c4]); }
    return load4(token[id * params.c4 + c4]);
}

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.vec4s { return; }
    let row = at / params.c4;
    let c4 = at % params.c4;
    let id = min(ids[row], params.last_id);
    y[at] = store4(token_at(id, c4) + load4(position[(row % params.l) * params.c4 + c4]));
}
