// y = a * gate(g), (a, g) the halves of x * w^T + bias: see kernels/src/swish_glu.rs.
//
// The loop of common/gemm.wgsl with a second tile of weights: 12 KiB of workgroup memory, 4 x 4 values and 4 x 4 gates
// per invocation.
#import activation

struct Params {
    rows: u32,
    cols: u32,
    k4: u32,
    cols4: u32,
    gate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [rows, k]
@group(0) @binding(2) var<storage, read> w: array<Pack>; // [2 * cols, k]
@group(0) @binding(3) var<storage, read> bias: array<Pack>; // [2 * cols]
@group(0) @binding(4) var<storage, read_write> y: array<Pack>; // [rows, cols]

const TILE = 64u;
const STEP4 = 4u;

var<workgroup> x_tile: array<vec4<f32>, 256>; // [STEP4, TILE]
var<workgroup> a_tile: array<vec4<f32>, 256>; // [STEP4, TILE]
var<workgroup> g_tile: array<vec4<f32>, 256>; // [STEP4, TILE]

fn stage(slot: u32, row: u32, col: u32, k4: u32) {
    var xv = vec4<f32>();
    var av = vec4<f32>();
    var gv = vec4<f32>();
    if k4 < params.k4 {
        if row < params.rows { xv = load4(x[row * params.k4 + k4]); }
        if col < params.cols {
            av = load4(w[col * params.k4 + k4]);
            gv = load4(w[(params.cols + col) * params.k4 + k4]);
        }
    }
    x_tile[slot] = xv;
    a_tile[slot] = av;
    g_tile[slot] = gv;
}

// Four biases from `first`, of columns from `col`; the gates' need not begin at a vec4. Zero beyond the last column.
fn bias4(first: u32, col: u32) -> vec4<f32> {
    var v = vec4<f32>();
    for (var lane = 0u; lane < min(4u, params.cols - col); lane++) {
        let index = first + col + lane;
        let pack = load4(bias[index / 4u]);
        v[lane] = pack[index % 4u];
    }
    return v;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row0 = group.y * TILE;
    let col0 = group.x * TILE;
    let tx = thread % 16u;
    let ty = thread / 16u;
    var a = array<vec4<f32>, 4>();
    var g = array<vec4<f32>, 4>();
    for (var step = 0u; step < params.k4; step += STEP4) {
        let at = thread / STEP4;
        stage(thread % STEP4 * TILE + at, row0 + at, col0 + at, step + thread % STEP4);
        workgroupBarrier();
        for (var k = 0u; k < STEP4 * TILE; k += TILE) {
            let c = k + 4u * tx;
            for (var i = 0u; i < 4u; i++) {
                let r = x_tile[k + 4u * ty + i];
                a[i] += vec4<f32>(dot(r, a_tile[c]), dot(r, a_tile[c + 1u]), dot(r, a_tile[c + 2u]), dot(r, a_tile[c + 3u]));
                g[i] += vec4<f32>(dot(r, g_tile[c]), dot(r, g_tile[c + 1u]), dot(r, g_tile[c + 2u]), dot(r, g_tile[c + 3u]));
            }
        }
        workgroupBarrier();
    }
    let col4 = col0 / 4u + tx;
    if col4 >= params.cols4 { return; }
    let bias_a = bias4(0u, 4u * col4);
    let bias_g = bias4(params.cols, 4u * col4);
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + 4u * ty + i;
        if row >= params.rows { return; }
        y[row * params.cols4 + col4] = store4((a[i] + bias_a) * activate(params.gate, g[i] + bias_g));
    }
}
