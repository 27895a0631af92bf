// Tiled matrix product: y[row, col] = sum over k of x[row, k] * w[col, k], both read as vec4 along k.
//
// A workgroup of 16 x 16 invocations computes a tile of 64 rows x 64 columns, 4 x 4 per invocation. Each step stages
// 16 values of k (four vec4) of 64 rows and of 64 columns in workgroup memory (8 KiB), k outermost so that
// neighbouring invocations read neighbouring words. The module that imports this defines
//   fn load_x(row: u32, k4: u32) -> vec4<f32>   // zero beyond the last row
//   fn load_w(col: u32, k4: u32) -> vec4<f32>   // zero beyond the last column
const TILE = 64u;
const STEP4 = 4u;
const TILE_THREADS = 256u;

var<workgroup> x_tile: array<vec4<f32>, 256>; // [STEP4, TILE]
var<workgroup> w_tile: array<vec4<f32>, 256>; // [STEP4, TILE]

/// The 4 x 4 sums of one invocation: entry i is row `4 * ty + i` of the tile, lanes are columns `4 * tx ..`.
fn gemm_tile(row0: u32, col0: u32, k4_len: u32, thread: u32) -> array<vec4<f32>, 4> {
    var acc = array<vec4<f32>, 4>();
    let tx = thread % 16u;
    let ty = thread / 16u;
    let stage_row = thread / STEP4;
    let stage_k4 = thread % STEP4;
    let steps = (k4_len + STEP4 - 1u) / STEP4;
    for (var step = 0u; step < steps; step++) {
        let k4 = step * STEP4 + stage_k4;
        var xv = vec4<f32>();
        var wv = vec4<f32>();
        if k4 < k4_len {
            xv = load_x(row0 + stage_row, k4);
            wv = load_w(col0 + stage_row, k4);
        }
        x_tile[stage_k4 * TILE + stage_row] = xv;
        w_tile[stage_k4 * TILE + stage_row] = wv;
        workgroupBarrier();
        for (var k = 0u; k < STEP4; k++) {
            let w0 = w_tile[k * TILE + 4u * tx];
            let w1 = w_tile[k * TILE + 4u * tx + 1u];
            let w2 = w_tile[k * TILE + 4u * tx + 2u];
            let w3 = w_tile[k * TILE + 4u * tx + 3u];
            for (var i = 0u; i < 4u; i++) {
                let xr = x_tile[k * TILE + 4u * ty + i];
                acc[i] += vec4<f32>(dot(xr, w0), dot(xr, w1), dot(xr, w2), dot(xr, w3));
            }
        }
        workgroupBarrier();
    }
    return acc;
}
