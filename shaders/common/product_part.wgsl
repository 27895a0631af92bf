// First stage of a split-k product: the entry point that writes the sums over each of PARTS parts of k to `parts`
// [PARTS, rows, PHASES, cols], in f32. See common/product.wgsl. Workgroups along x are the tiles of columns of the first
// part, then those of the next.
@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = (params.first_row_tile + row_tile(group, groups)) * TILE_ROWS;
    if row0 >= params.rows { return; }
    let part = group.x / column_tiles();
    let quad0 = first_quad(group.x % column_tiles());
    // Every part is a multiple of a step.
    let part4 = (inner4() + PARTS * STEP4 - 1u) / (PARTS * STEP4) * STEP4;
    var sums = gemm_tile(row0, 4u * quad0, part * part4, min((part + 1u) * part4, inner4()), thread);
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    if thread >= LAYER { return; }
    for (var j = 0u; j < QUADS_EACH; j++) {
        let col4 = quad0 + j * THREADS_X + thread % THREADS_X;
        for (var i = 0u; i < ROWS_EACH; i++) {
            if row + i >= params.rows || col4 >= params.cols4 { continue; }
            parts[part_at(part, row + i, col4)] = sums[i * QUADS_EACH + j];
        }
    }
}
