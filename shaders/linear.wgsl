// y = residual + activation(x * w^T + bias): see kernels/src/linear.rs.
#import gemm
#import activation

struct Params {
    rows: u32,
    cols: u32,
    k4: u32,
    cols4: u32,
    activation: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [rows, k]
@group(0) @binding(2) var<storage, read> w: array<Pack>; // [cols, k]
@group(0) @binding(3) var<storage, read> bias: array<Pack>; // [cols]
@group(0) @binding(4) var<storage, read> residual: array<Pack>; // [rows, cols]
@group(0) @binding(5) var<storage, read_write> y: array<Pack>; // [rows, cols]

fn load_x(row: u32, k4: u32) -> vec4<f32> {
    if row >= params.rows { return vec4<f32>(); }
    return load4(x[row * params.k4 + k4]);
}

fn load_w(col: u32, k4: u32) -> vec4<f32> {
    if col >= params.cols { return vec4<f32>(); }
    return load4(w[col * params.k4 + k4]);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row0 = group.y * TILE;
    let col0 = group.x * TILE;
    let acc = gemm_tile(row0, col0, params.k4, thread);
    let col4 = col0 / 4u + thread % 16u;
    if col4 >= params.cols4 { return; }
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + 4u * (thread / 16u) + i;
        if row >= params.rows { return; }
        var v = acc[i];
        if HAS_BIAS == 1u { v += load4(bias[col4]); }
        v = activate(params.activation, v);
        if HAS_RESIDUAL == 1u { v += load4(residual[row * params.cols4 + col4]); }
        y[row * params.cols4 + col4] = store4(v);
    }
}
