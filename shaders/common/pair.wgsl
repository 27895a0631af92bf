// Two matrix products of the same rows, so that x is read once: the loop of common/gemm.wgsl with a second tile of
// weights, 12 KiB of workgroup memory, 4 x 4 sums of each product per invocation. The module that imports this defines
//   fn load_x(row: u32, k4: u32) -> vec4<f32>   // zero beyond the last row
//   fn load_a(col: u32, k4: u32) -> vec4<f32>   // zero beyond the last column
//   fn load_b(col: u32, k4: u32) -> vec4<f32>   // zero beyond the last column
const TILE = 64u;
const STEP4 = 4u;

struct Pair {
    a: array<vec4<f32>, 4>,
    b: array<vec4<f32>, 4>,
}

var<workgroup> x_tile: array<vec4<f32>, 256>; // [STEP4, TILE]
var<workgroup> a_tile: array<vec4<f32>, 256>; // [STEP4, TILE]
var<workgroup> b_tile: array<vec4<f32>, 256>; // [STEP4, TILE]

/// The sums of one invocation, as those of `gemm_tile`.
fn pair_tile(row0: u32, col0: u32, k4_len: u32, thread: u32) -> Pair {
    var sums = Pair();
    let tx = thread % 16u;
    let ty = thread / 16u;
    let at = thread / STEP4;
    let slot = thread % STEP4 * TILE + at;
    for (var step = 0u; step < k4_len; step += STEP4) {
        let k4 = step + thread % STEP4;
        var xv = vec4<f32>();
        var av = vec4<f32>();
        var bv = vec4<f32>();
        if k4 < k4_len {
            xv = load_x(row0 + at, k4);
            av = load_a(col0 + at, k4);
            bv = load_b(col0 + at, k4);
        }
        x_tile[slot] = xv;
        a_tile[slot] = av;
        b_tile[slot] = bv;
        workgroupBarrier();
        for (var k = 0u; k < STEP4 * TILE; k += TILE) {
            let c = k + 4u * tx;
            for (var i = 0u; i < 4u; i++) {
                let r = x_tile[k + 4u * ty + i];
                sums.a[i] += vec4<f32>(dot(r, a_tile[c]), dot(r, a_tile[c + 1u]), dot(r, a_tile[c + 2u]), dot(r, a_tile[c + 3u]));
                sums.b[i] += vec4<f32>(dot(r, b_tile[c]), dot(r, b_tile[c + 1u]), dot(r, b_tile[c + 2u]), dot(r, b_tile[c + 3u]));
            }
        }
        workgroupBarrier();
    }
    return sums;
}
