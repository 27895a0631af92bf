// Left factor of a product whose rows are the rows of `x`: the functions that common/gemm.wgsl asks for, by the loads
// and norms of common/prologue.wgsl. `Params` has `rows` and `k4`, the vec4s of a row. Rows beyond the last repeat it.
#import prologue
@if(NORM_ROWS) #import scratch

// Parameters of the norm of the rows that this invocation loads.
var<private> row_norms: array<RowNorm, ROW_SLOTS>;

// Finds the image of the tile, if it has only one.
fn prepare_rows(row0: u32, at: u32) { enter_image(min(row0, params.rows - 1u) / params.positions, params.k4); }

// Finds the parameters of the norm of this invocation's rows. With NORM_ROWS the workgroup merges the moments of every
// row of the tile once, and exchanges the results through workgroup memory.
fn finish_rows(row0: u32, at: u32, thread: u32) {
    @if(NORM_ROWS)
    for (var i = thread; i < TILE_ROWS; i += THREADS) {
        scratch[i] = vec4<f32>(merged(min(row0 + i, params.rows - 1u)), 0.0, 0.0);
    }
    workgroupBarrier();
    for (var s = 0u; s < ROW_SLOTS; s++) {
        let found = scratch[at + s * SPAN];
        row_norms[s].mean = found.x;
        row_norms[s].rstd = found.y;
    }
    workgroupBarrier();
    @else
    for (var s = 0u; s < ROW_SLOTS; s++) {
        row_norms[s] = row_norm(min(row0 + at + s * SPAN, params.rows - 1u), params.k4);
    }
    @end
}

// Loads scale and offset at `k4`, and returns whether `k4` is in `x2`.
fn fetch_k(k4: u32) -> bool {
    fetch_norm(k4, params.k4);
    return is_second(k4);
}

// Loads vec4 `k4` of a row.
fn fetch_x(slot: u32, row: u32, k4: u32, second: bool) -> Input {
    return fetch_source(min(row, params.rows - 1u), k4, params.k4, second);
}

// Converts and normalises a loaded vec4.
fn made_x(slot: u32, k4: u32, fetched: Input) -> vec4<f32> { return made(fetched, row_norms[slot], k4, params.k4); }

// Normalises a loaded vec4, in the storage type.
fn made_pack_x(slot: u32, k4: u32, fetched: Input) -> Pack {
    return made_pack(fetched, row_norms[slot], k4, params.k4);
}
