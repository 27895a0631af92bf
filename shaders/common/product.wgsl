// Matrix product with an epilogue: y = residual + activation(x w^T + bias + shift), and optionally the moments of y, by
// channels or by rows. This is the entry point of linear.wgsl and conv2d.wgsl; y is [rows, cols], or with STACKED as in
// common/product_end.wgsl.
//
// Normally one dispatch does everything (PRODUCT and ENDS). A split-k product takes two: the first (PRODUCT only)
// writes the partial sums over each of PARTS parts of k to `parts`, and the second (ENDS only) adds them and applies
// the epilogue.
//
// The importing module declares the operands that are present and, in `Params`, `rows`, `cols` and `cols4` (vec4s of
// cols); with STACKED also `layer4` and `stored_rows`. With PHASED there are PHASES such products, each with
// its own x and w, and `phase` is the number of the one that the workgroup computes. It defines
//   prepare_rows, finish_rows, fetch_k, fetch_x, made_x and made_pack_x    // as described in common/gemm.wgsl
//   fn inner4() -> u32                                                    // number of vec4s of k
//   fn fetch_shift(row: u32, col4: u32) -> Pack                           // loads the shift of the row's image
//   fn shifted(v: vec4<f32>, fetched: Pack) -> vec4<f32>                  // adds the shift, if there is one
//   fn stored_row(row: u32) -> u32                                        // with PHASED: the row of y of a row
//   fn stored_moments(tile: u32) -> u32                                   // with PHASED: the moments of a tile of rows
// With WINOGRAD, common/gemm_winograd.wgsl defines the last two, and needs none of the first line.
#import grid
@if(PRODUCT)
@if(MATRIX) #import gemm_matrix
@if(!MATRIX)
@if(WINOGRAD) #import gemm_winograd
@if(!WINOGRAD) #import gemm
@end
@else
#import gemm_parts
@end
@if(ENDS) #import product_end
@if(!ENDS) #import product_part

// Product that the workgroup computes, of PHASES.
@if(PHASED) var<private> phase: u32;
@if(!PHASED) const phase = 0u;

// Returns the number of tiles of columns of all phases, with which a grid has them along x.
fn column_tiles() -> u32 { return PHASES * ((params.cols4 + TILE_QUADS - 1u) / TILE_QUADS); }

// Returns the first vec4 of columns of a tile, numbered by phases, then by columns. Begins the phase.
fn first_quad(tile: u32) -> u32 {
    @if(PHASED)
    let tiles = column_tiles() / PHASES;
    phase = tile / tiles;
    return tile % tiles * TILE_QUADS;
    @else
    return tile * TILE_QUADS;
    @end
}

@if(IN_PARTS)
// Returns the index in `parts` of vec4 `col4` of the sums of a row.
fn part_at(part: u32, row: u32, col4: u32) -> u32 {
    return ((part * params.rows + row) * PHASES + phase) * params.cols4 + col4;
}
@end

@if(PRODUCT)
// Returns the index in w of the weights of column `col` of the tile, clamped to the last column.
fn first_weight(col0: u32, col: u32) -> u32 {
    return weight_row(min(col0 + col, params.cols - 1u) * PHASES + phase, inner4());
}

// Loads vec4 `k4` of the weights of column `first + at` of the tile.
fn fetch_w(col0: u32, first: u32, at: u32, k4: u32) -> WeightPack {
    return w[first_weight(col0, first + at) + WEIGHT_HEAD + k4];
}

// Loads the scale of column `col` of the tile.
fn fetch_scale(col0: u32, col: u32) -> WeightPack { return w[first_weight(col0, col)]; }
@end
