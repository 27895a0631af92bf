// The left factor of a product whose rows are those of `x`: what common/gemm.wgsl asks of the module that imports it.
#import source

fn prepare_row(slot: u32, row: u32) {}

fn load_x(slot: u32, row: u32, k4: u32) -> vec4<f32> {
    if row >= params.rows { return vec4<f32>(); }
    return load_source(row, k4, params.k4);
}
