// Left factor of a product whose rows are the rows of `x`: the functions that common/gemm.wgsl asks for, by the loads
// and norms of common/prologue.wgsl. `Params` has `rows` and `k4`, the vec4s of a row. Rows beyond the last repeat it.
#import prologue

// Row statistics of the rows that this invocation loads.
var<private> row_norms: array<RowNorm, ROW_SLOTS>;

// Loads the statistics of a row.
fn prepare_row(slot: u32, row: u32) {
    row_norms[slot] = row_norm(min(row, params.rows - 1u), params.k4);
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
