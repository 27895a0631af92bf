// y = residual + activation(conv(x, w) + bias + shift): see kernels/src/conv2d.rs.
#import grid
@if(PLAIN) #import gemm
@if(MATRIX) #import gemm_matrix
#import activation
#import source
#import tile_moments

struct Params {
    rows: u32,
    h: u32,
    w: u32,
    oh: u32,
    ow: u32,
    ci4: u32,
    co: u32,
    co4: u32,
    pad_start: u32,
    activation: u32,
    first4: u32,
    positions: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Pack>; // [n, h, w, ci], less the channels of x2
@group(0) @binding(2) var<storage, read> w: array<WeightPack>; // [co, KERNEL, KERNEL, ci]
@if(HAS_BIAS) @group(0) @binding(3) var<storage, read> bias: array<Pack>; // [co]
@if(HAS_SHIFT) @group(0) @binding(4) var<storage, read> shift: array<Pack>; // [n, co]
@if(HAS_RESIDUAL) @group(0) @binding(5) var<storage, read> residual: array<Pack>; // [n, oh, ow, co]
@if(HAS_X2) @group(0) @binding(6) var<storage, read> x2: array<Pack>; // [n, h, w, the rest of ci]
@if(NORM_CHANNELS) @group(0) @binding(7) var<storage, read> norm: array<vec4<f32>>; // [n, 2, ci]
@group(0) @binding(8) var<storage, read_write> y: array<Pack>; // [n, oh, ow, co]
@if(HAS_MOMENTS) @group(0) @binding(9) var<storage, read_write> moments: array<vec4<f32>>; // [rows / 64, 2, co]

// Where an output pixel's first tap lies in the upsampled input. Above and left of it the numbers wrap, which puts
// them beyond the far edge, and one comparison finds both.
struct Pixel {
    image: u32,
    top: u32,
    left: u32,
}

// The pixels of the rows that this invocation loads at every step.
var<private> pixels: array<Pixel, ROW_SLOTS>;

fn prepare_row(slot: u32, row: u32) {
    let line = row / params.ow;
    let oy = line % params.oh;
    let ox = row % params.ow;
    pixels[slot] = Pixel(line / params.oh, oy * STRIDE - params.pad_start, ox * STRIDE - params.pad_start);
}

fn load_x(slot: u32, row: u32, k4: u32) -> vec4<f32> {
    if row >= params.rows { return vec4<f32>(); }
    let pixel = pixels[slot];
    let tap = k4 / params.ci4;
    let up_y = pixel.top + tap / KERNEL;
    let up_x = pixel.left + tap % KERNEL;
    if up_y >= params.h * UPSAMPLE || up_x >= params.w * UPSAMPLE { return vec4<f32>(); }
    let line = pixel.image * params.h + up_y / UPSAMPLE;
    return load_source(line * params.w + up_x / UPSAMPLE, k4 - tap * params.ci4, params.ci4);
}

fn load_w(col0: u32, col: u32, k4: u32) -> vec4<f32> {
    if col0 + col >= params.co { return vec4<f32>(); }
    let row = weight_row(col0 + col, KERNEL * KERNEL * params.ci4);
    return weight4(w[row], w[row + WEIGHT_HEAD + k4]);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = row_tile(group, groups) * TILE_ROWS;
    if row0 >= params.rows { return; }
    var sums = gemm_tile(row0, group.x * 4u * TILE_QUADS, KERNEL * KERNEL * params.ci4, thread);
    let row = row0 + ROWS_EACH * (thread / THREADS_X);
    for (var j = 0u; j < QUADS_EACH; j++) {
        let col4 = group.x * TILE_QUADS + j * THREADS_X + thread % THREADS_X;
        let inside = thread < LAYER && col4 < params.co4;
        @if(HAS_MOMENTS) var written = array<vec4<f32>, ROWS_EACH>();
        for (var i = 0u; i < ROWS_EACH; i++) {
            if !inside || row + i >= params.rows { continue; }
            let at = (row + i) * params.co4 + col4;
            var v = sums[i * QUADS_EACH + j];
            @if(HAS_BIAS) v += load4(bias[col4]);
            @if(HAS_SHIFT) v += load4(shift[(row + i) / (params.oh * params.ow) * params.co4 + col4]);
            v = activate(params.activation, v);
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
            moments[2u * tile * params.co4 + col4] = found.mean;
            moments[(2u * tile + 1u) * params.co4 + col4] = found.variance;
        }
        @end
    }
}
