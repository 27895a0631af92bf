// Last stage of a product: the entry point that computes the sums of a tile, or adds those of its parts, applies the
// epilogue and writes y. See common/product.wgsl. Workgroup (x, y, z) computes tile x of the columns of all phases and
// tile `row_tile` of the rows.
//
// With STACKED the columns belong to layers of `4 * params.layer4` columns each, and y is [layers, stored_rows, columns of
// a layer]; rows from `rows` on are zeros.
#import activation
#import gemm_columns
@if(HAS_MOMENTS) #import tile_moments
@if(HAS_ROW_MOMENTS) #import block_moments

// Returns the rows of y, or of a layer of it.
fn stored_rows() -> u32 {
    @if(STACKED) return params.stored_rows;
    @if(!STACKED) return params.rows;
}

// Returns the index in y of vec4 `col4` of the columns in row 0, and the distance from one row to the next.
fn column_at(col4: u32) -> vec2<u32> {
    @if(STACKED) return vec2<u32>(col4 / params.layer4 * params.stored_rows * params.layer4 + col4 % params.layer4, params.layer4);
    @if(!STACKED) return vec2<u32>(col4, params.cols4);
}

@if(!PHASED)
@if(!WINOGRAD)
// Rows of y are in the order of the product's.
fn stored_row(row: u32) -> u32 { return row; }
fn stored_moments(tile: u32) -> u32 { return tile; }
@end
@end

// Loads the residual at vec4 `at` of y. With IN_PLACE, y contains it before it is overwritten.
fn added_at(at: u32) -> Pack {
    var v = Pack();
    @if(HAS_RESIDUAL) v = residual[at];
    @if(IN_PLACE) v = y[at];
    return v;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = (params.first_row_tile + row_tile(group, groups)) * TILE_ROWS;
    if row0 >= stored_rows() { return; }
    let quad0 = first_quad(group.x);
    @if(PRODUCT) var sums = gemm_tile(row0, 4u * quad0, 0u, inner4(), thread);
    @if(!PRODUCT) var sums = met_sums(row0, quad0, thread);
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    let last = params.rows - 1u;
    @if(HAS_MOMENTS) var written: array<vec4<f32>, ROWS_EACH>;
    for (var j = 0u; j < QUADS_EACH; j++) {
        let col4 = quad0 + j * THREADS_X + thread % THREADS_X;
        // `&` instead of `&&`, which would be a branch.
        let inside = (thread < LAYER) & (row < stored_rows()) & (col4 < params.cols4);
        let place = column_at(col4);
        let own4 = min(col4, params.cols4 - 1u);
        // All loads are issued before any of them is used. With IN_PLACE, invocations must not read elements that
        // others write, hence the condition.
        @if(HAS_BIAS) let b = bias[own4];
        var added: array<Pack, ROWS_EACH>;
        var shifts: array<Pack, ROWS_EACH>;
        if inside {
            for (var i = 0u; i < ROWS_EACH; i++) {
                added[i] = added_at(stored_row(min(row + i, last)) * params.cols4 + col4);
                shifts[i] = fetch_shift(min(row + i, last), col4);
            }
        }
        for (var i = 0u; i < ROWS_EACH; i++) {
            var v = sums[i * QUADS_EACH + j];
            @if(HAS_BIAS) v += load4(b);
            v = activate(ACTIVATION, shifted(v, shifts[i]));
            @if(HAS_RESIDUAL) v += load4(added[i]);
            @if(IN_PLACE) v += load4(added[i]);
            v = without_padding(v, col4, params.cols);
            @if(STACKED) v = select(vec4<f32>(0.0), v, row + i < params.rows);
            let stored = inside & (row + i < stored_rows());
            if stored {
                let at = place.x + stored_row(row + i) * place.y;
                @if(!Y_F32) y[at] = store4(v);
                @if(Y_F32) y[at] = v;
            }
            @if(HAS_MOMENTS) written[i] = select(vec4<f32>(0.0), v, stored);
            @if(HAS_ROW_MOMENTS) sums[i * QUADS_EACH + j] = select(vec4<f32>(0.0), v, stored);
        }
        @if(HAS_MOMENTS)
        // Tiles of moments are 64 consecutive rows of the product. Only the last tile may be incomplete, and only with a
        // single image.
        let tile = row0 / 64u + moment_tile(thread);
        let found = tile_moments(written, min(64u, max(params.rows, 64u * tile) - 64u * tile), thread);
        if inside && moment_row(thread) == 0u && 64u * tile < params.rows {
            let at = 2u * stored_moments(tile) * params.cols4 + col4;
            moments[at] = found.mean;
            moments[at + params.cols4] = found.variance;
        }
        @end
    }
    @if(HAS_ROW_MOMENTS) write_row_moments(&sums, row, quad0, thread);
}
