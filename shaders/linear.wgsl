// Linear layer with an epilogue: y = residual + activation(x w^T + bias), also for 1x1 convolutions. The host side is
// kernels/src/linear.rs.
//
// Operands: x [rows, k], w [cols, k], bias [cols], residual and y [rows, cols]. x may be concatenated with x2 along k,
// and normalised on the way (common/prologue.wgsl). A workgroup computes a tile of y: see common/product.wgsl and
// common/gemm.wgsl. With STACKED, the columns are those of several layers, and y is [layers, stored_rows, 4 * layer4].
#import product
@if(PRODUCT) #import rows

struct Params {
    first_row_tile: u32,
    rows: u32,
    cols: u32,
    k4: u32,
    cols4: u32,
    @if(STACKED) layer4: u32,
    @if(STACKED) stored_rows: u32,
    first4: u32,
    positions: u32,
    @if(NORM_ROWS) channels: u32,
    @if(NORM_ROWS) eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@if(PRODUCT)
@group(0) @binding(1) var<storage, read> x: array<Input>; // [rows, k], less the channels of x2
@group(0) @binding(2) var<storage, read> w: array<WeightPack>; // [cols, k]
@if(HAS_X2) @group(0) @binding(5) var<storage, read> x2: array<Pack>; // [rows, the rest of k]
@if(NORM_ROWS) @group(0) @binding(6) var<storage, read> stats: array<vec4<f32>>; // [rows, 2, k / 32]
@if(NORM_ROWS) @group(0) @binding(7) var<storage, read> norm_weight: array<Pack>; // [k]
@if(NORM_ROWS) @group(0) @binding(8) var<storage, read> norm_bias: array<Pack>; // [k]
@if(NORM_CHANNELS) @group(0) @binding(9) var<storage, read> norm: array<vec4<f32>>; // [images, 2, k]
@end
@if(ENDS)
@if(HAS_BIAS) @group(0) @binding(3) var<storage, read> bias: array<Pack>; // [cols]
@if(HAS_RESIDUAL) @group(0) @binding(4) var<storage, read> residual: array<Pack>; // [rows, cols]
@group(0) @binding(10) var<storage, read_write> y: array<Pack>; // [rows, cols]
@if(HAS_MOMENTS) @group(0) @binding(11) var<storage, read_write> moments: array<vec4<f32>>; // [rows / 64, 2, cols]
@if(HAS_ROW_MOMENTS) @group(0) @binding(12) var<storage, read_write> row_moments: array<f32>; // [rows, 2, cols / 32]
@end
@if(IN_PARTS) @group(0) @binding(13) var<storage, read_write> parts: array<vec4<f32>>; // [PARTS, rows, cols]

// Returns the number of vec4s of k.
fn inner4() -> u32 { return params.k4; }

// A linear layer has no shift.
fn fetch_shift(row: u32, col4: u32) -> Pack { return Pack(); }

// Returns v, as there is no shift.
fn shifted(v: vec4<f32>, fetched: Pack) -> vec4<f32> { return v; }
