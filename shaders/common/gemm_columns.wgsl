// Per-column steps at the end of a product: scales of int8 weights, and zeros in the padding of rows.

@if(PRODUCT)
// Multiplies the sums by the scales of their columns, if weights are int8. A weight is an integer times its column's
// scale, so the product accumulates integers, and one multiplication per sum is enough. Other weights have no scale.
fn scaled(sums: Sums, col0: u32, thread: u32) -> Sums {
    var all = sums;
    if WEIGHT_HEAD == 0u { return all; }
    for (var j = 0u; j < QUADS_EACH; j++) {
        let col = 4u * (j * THREADS_X + thread % THREADS_X);
        let low = vec2<f32>(weight_scale(fetch_scale(col0, col)), weight_scale(fetch_scale(col0, col + 1u)));
        let high = vec2<f32>(weight_scale(fetch_scale(col0, col + 2u)), weight_scale(fetch_scale(col0, col + 3u)));
        for (var i = 0u; i < ROWS_EACH; i++) { all[i * QUADS_EACH + j] *= vec4<f32>(low, high); }
    }
    return all;
}
@end

// Replaces the columns of vec4 `col4` that are not below `cols` by zeros: rows are padded to whole vec4s.
fn without_padding(v: vec4<f32>, col4: u32, cols: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), v, 4u * col4 + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(cols));
}
