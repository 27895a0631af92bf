// y = residual + activation(product + bias + shift), with moments of y if they are wanted: the whole of a product with one
// output. Where it is made in PARTS of k, a stage of its own (PRODUCT without ENDS) leaves the sums of each in `parts`,
// and another one (ENDS without PRODUCT) does the rest. The module that imports this declares the operands that are there
// and, in `Params`, `rows`, `cols`, `cols4` (the vec4s of a row of `y`); it defines
//   prepare_row, fetch_k, fetch_x, made_x and made_pack_x                   // as in common/gemm.wgsl
//   fn inner4() -> u32                                                      // the vec4s of k
//   fn fetch_shift(row: u32, col4: u32) -> Pack                             // what depends on the row's image
//   fn shifted(v: vec4<f32>, fetched: Pack) -> vec4<f32>                    // adds it, if there is any
#import grid
@if(PRODUCT)
@if(MATRIX) #import gemm_matrix
@if(!MATRIX) #import gemm
@else
#import gemm_parts
@end
@if(ENDS) #import product_end
@if(!ENDS) #import product_part

@if(PRODUCT)
// The weights of a column of the tile, or of the last that there is.
fn first_weight(col0: u32, col: u32) -> u32 { return weight_row(min(col0 + col, params.cols - 1u), inner4()); }

fn fetch_w(col0: u32, first: u32, at: u32, k4: u32) -> WeightPack {
    return w[first_weight(col0, first + at) + WEIGHT_HEAD + k4];
}

fn fetch_scale(col0: u32, col: u32) -> WeightPack { return w[first_weight(col0, col)]; }
@end
