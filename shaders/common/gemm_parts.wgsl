// Second stage of a split-k product: adds the PARTS partial sums of a tile, which the first stage left in `parts`
// [PARTS, rows, PHASES, cols]. See common/product.wgsl.
#import gemm_sums
const THREADS = LAYER;

// Returns the sums of invocation `thread`: rows from `ROWS_EACH * (thread / THREADS_X)`, and every THREADS_X-th vec4 of
// columns from `thread % THREADS_X`. Rows and columns beyond the last repeat it.
fn met_sums(row0: u32, quad0: u32, thread: u32) -> Sums {
    var sums: Sums;
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    for (var part = 0u; part < PARTS; part++) {
        for (var i = 0u; i < ROWS_EACH; i++) {
            let first = part_at(part, min(row + i, params.rows - 1u), 0u);
            for (var j = 0u; j < QUADS_EACH; j++) {
                let col4 = quad0 + j * THREADS_X + thread % THREADS_X;
                sums[i * QUADS_EACH + j] += parts[first + min(col4, params.cols4 - 1u)];
            }
        }
    }
    return sums;
}
