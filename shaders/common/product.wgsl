// y = residual + activation(product + bias + shift), with moments of y if they are wanted: the whole of a product with one
// output. The module that imports this declares the operands that are there and, in `Params`, `rows`, `cols`, `cols4` (the
// vec4s of a row of `y`) and `activation`; it defines
//   fn prepare_row(slot: u32, row: u32)                                     // as in common/gemm.wgsl
//   fn load_x(slot: u32, row: u32, k4: u32) -> vec4<f32>                    // as in common/gemm.wgsl
//   fn inner4() -> u32                                                      // the vec4s of k
//   fn shifted(v: vec4<f32>, row: u32, col4: u32) -> vec4<f32>              // adds what depends on the row's image
#import grid
@if(PLAIN) #import gemm
@if(MATRIX) #import gemm_matrix
#import activation
#import tile_moments

fn load_w(col0: u32, col: u32, k4: u32) -> vec4<f32> {
    if col0 + col >= params.cols { return vec4<f32>(); }
    let row = weight_row(col0 + col, inner4());
    return weight4(w[row], w[row + WEIGHT_HEAD + k4]);
}

@if(MATRIX)
fn scale_w(col0: u32, col: u32) -> f32 {
    if col0 + col >= params.cols { return 0.0; }
    return weight_scale(w[weight_row(col0 + col, inner4())]);
}
@end

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = row_tile(group, groups) * TILE_ROWS;
    if row0 >= params.rows { return; }
    var sums = gemm_tile(row0, group.x * 4u * TILE_QUADS, inner4(), thread);
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    for (var j = 0u; j < QUADS_EACH; j++) {
        let col4 = group.x * TILE_QUADS + j * THREADS_X + thread % THREADS_X;
        let inside = thread < LAYER && col4 < params.cols4;
        @if(HAS_MOMENTS) var written = array<vec4<f32>, ROWS_EACH>();
        for (var i = 0u; i < ROWS_EACH; i++) {
            if !inside || row + i >= params.rows { continue; }
            let at = (row + i) * params.cols4 + col4;
            var v = sums[i * QUADS_EACH + j];
            @if(HAS_BIAS) v += load4(bias[col4]);
            v = activate(params.activation, shifted(v, row + i, col4));
            @if(HAS_RESIDUAL) v += load4(residual[at]);
            @if(IN_PLACE) v += load4(y[at]);
            y[at] = store4(v);
            @if(HAS_MOMENTS) written[i] = v;
        }
        @if(HAS_MOMENTS)
        // The tiles of an image follow each other, and only the last of a single image may be short.
        let tile = row0 / 64u + moment_tile(thread);
        let found = tile_moments(written, min(64u, max(params.rows, 64u * tile) - 64u * tile), thread);
        if inside && moment_row(thread) == 0u && 64u * tile < params.rows {
            moments[2u * tile * params.cols4 + col4] = found.mean;
            moments[(2u * tile + 1u) * params.cols4 + col4] = found.variance;
        }
        @end
    }
}
