// Sums of weights in 8 bits, brought to what they are: the weights of a column are whole multiples of its scale.
fn column_scale(col0: u32, col: u32) -> f32 {
    if !has_col(col0, col) { return 0.0; }
    return weight_scale(fetch_scale(col0, col));
}

fn scaled(sums: Sums, col0: u32, thread: u32) -> Sums {
    var all = sums;
    if WEIGHT_HEAD == 0u { return all; }
    for (var j = 0u; j < QUADS_EACH; j++) {
        let col = 4u * (j * THREADS_X + thread % THREADS_X);
        let low = vec2<f32>(column_scale(col0, col), column_scale(col0, col + 1u));
        let high = vec2<f32>(column_scale(col0, col + 2u), column_scale(col0, col + 3u));
        for (var i = 0u; i < ROWS_EACH; i++) { all[i * QUADS_EACH + j] *= vec4<f32>(low, high); }
    }
    return all;
}
