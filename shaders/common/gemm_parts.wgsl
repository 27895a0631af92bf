// The sums of a tile that other workgroups made in PARTS, each of a part of k: see common/product.wgsl.
#import gemm_sums
const THREADS = LAYER;

/// The sums of invocation `thread`: rows from `ROWS_EACH * (thread / THREADS_X)` and vec4s of columns
/// `thread % THREADS_X` and every THREADS_X further; beyond the last row and column those of the last.
fn met_sums(row0: u32, quad0: u32, thread: u32) -> Sums {
    var sums: Sums;
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    for (var part = 0u; part < PARTS; part++) {
        for (var i = 0u; i < ROWS_EACH; i++) {
            let first = (part * params.rows + min(row + i, params.rows - 1u)) * params.cols4;
            for (var j = 0u; j < QUADS_EACH; j++) {
                let col4 = quad0 + j * THREADS_X + thread % THREADS_X;
                sums[i * QUADS_EACH + j] += parts[first + min(col4, params.cols4 - 1u)];
            }
        }
    }
    return sums;
}
