// The left factor of a product whose rows are those of `x`: what common/gemm.wgsl asks of the module that imports it.
#import source

var<private> row_norms: array<RowNorm, ROW_SLOTS>;

fn prepare_row(slot: u32, row: u32) {
    row_norms[slot] = row_norm(min(row, params.rows - 1u), params.k4);
}

fn fetch_k(k4: u32) -> bool {
    fetch_norm(k4, params.k4);
    return is_second(k4);
}

fn fetch_x(slot: u32, row: u32, k4: u32, second: bool) -> Input {
    return fetch_source(min(row, params.rows - 1u), k4, params.k4, second);
}

fn made_x(slot: u32, k4: u32, fetched: Input) -> vec4<f32> { return made(fetched, row_norms[slot], k4, params.k4); }

fn made_pack_x(slot: u32, k4: u32, fetched: Input) -> Pack {
    return made_pack(fetched, row_norms[slot], k4, params.k4);
}
