// Dense 2D convolution with an epilogue: y = residual + activation(conv(x, w) + bias + shift). The host side is
// kernels/src/conv2d.rs.
//
// Operands: x [n, h, w, ci], w [co, KERNEL, KERNEL, ci], bias [co], shift [n, co], residual and y [n, oh, ow, co].
// KERNEL is 1 or 3. With UPSAMPLE 2, x is read as if every pixel were repeated two by two. x may be concatenated with
// x2 along the channels, and normalised on the way (common/prologue.wgsl); the zeros of the border are inserted after
// that.
//
// PHASED is the form for most upsampling convolutions, which needs no more than four taps of 3x3 (conv2d/phases.rs): w
// is [co, 4, 2, 2, ci], one 2x2 kernel for each phase, which is a position in the 2x2 output pixels over a pixel of x.
// KERNEL is 2, UPSAMPLE 1, and the rows of the product are the pixels of x: oh and ow are h and w, and y is [n, 2 * h, 2
// * w, co].
//
// The convolution is an implicit matrix product (common/product.wgsl): rows are the output pixels of all images,
// columns the output channels, and k runs over taps, then input channels. A workgroup computes a tile of pixels x
// output channels. No patch matrix is written to memory: this file defines where element (pixel, k) lies in x. The tap
// changes only every ci4 vec4s of k, so the addresses of an invocation's pixels are computed once per tap and kept in
// registers. With WINOGRAD, common/gemm_winograd.wgsl computes the convolution instead, in blocks of the map.
#import product
@if(PRODUCT) #import prologue

struct Params {
    first_row_tile: u32,
    rows: u32,
    h: u32,
    w: u32,
    oh: u32,
    ow: u32,
    ci4: u32,
    cols: u32,
    cols4: u32,
    pad_start: u32,
    first4: u32,
    positions: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@if(PRODUCT)
@group(0) @binding(1) var<storage, read> x: array<Input>; // [n, h, w, ci], less the channels of x2
@group(0) @binding(2) var<storage, read> w: array<WeightPack>; // [co, PHASES, KERNEL, KERNEL, ci]
@if(HAS_X2) @group(0) @binding(6) var<storage, read> x2: array<Pack>; // [n, h, w, the rest of ci]
@if(NORM_CHANNELS) @group(0) @binding(7) var<storage, read> norm: array<vec4<f32>>; // [n, 2, ci]
@end
@if(ENDS)
@if(HAS_BIAS) @group(0) @binding(3) var<storage, read> bias: array<Pack>; // [co]
@if(HAS_SHIFT) @group(0) @binding(4) var<storage, read> shift: array<Pack>; // [n, co]
@if(HAS_RESIDUAL) @group(0) @binding(5) var<storage, read> residual: array<Pack>; // [n, oh, ow, co]
@if(!Y_F32) @group(0) @binding(8) var<storage, read_write> y: array<Pack>; // [n, oh, ow, co]
@if(Y_F32) @group(0) @binding(8) var<storage, read_write> y: array<vec4<f32>>; // [n, oh, ow, co]
@if(HAS_MOMENTS) @group(0) @binding(9) var<storage, read_write> moments: array<vec4<f32>>; // [n * pixels of y / 64, 2, co]
@end
@if(IN_PARTS) @group(0) @binding(10) var<storage, read_write> parts: array<vec4<f32>>; // [PARTS, rows, PHASES, co]

@if(PRODUCT)
@if(!WINOGRAD)
// Position of an output pixel's first tap in the upsampled input. Coordinates above and left of the input wrap around
// to large numbers, so that one comparison detects both edges.
struct Pixel {
    // First line of its image, counted over all images.
    line: u32,
    top: u32,
    left: u32,
    norm: RowNorm,
}

// Output pixels whose inputs this invocation loads at every step. For the current tap: the index of each pixel's input
// row (a pixel of x), and whether it is inside the input.
var<private> pixels: array<Pixel, ROW_SLOTS>;
var<private> places: array<u32, ROW_SLOTS>;
var<private> within: array<bool, ROW_SLOTS>;
// Current tap; the initial value is none of them.
var<private> tap: u32 = 9u;

// Computes the positions of this invocation's output pixels. Pixels beyond the last repeat it.
fn prepare_rows(row0: u32, at: u32) {
    enter_image(row0 / (params.oh * params.ow), params.ci4);
    for (var s = 0u; s < ROW_SLOTS; s++) {
        let own = min(row0 + at + s * SPAN, params.rows - 1u);
        let line = own / params.ow;
        let image = line / params.oh;
        let top = line % params.oh * STRIDE + phase / 2u - params.pad_start;
        let left = own % params.ow * STRIDE + phase % 2u - params.pad_start;
        pixels[s] = Pixel(image * params.h, top, left, row_norm(image * params.positions, params.ci4));
    }
}

// The parameters of the norm are those of the pixels' images.
fn finish_rows(row0: u32, at: u32, thread: u32) {}

// Computes the addresses of all pixels for the current tap.
fn place_rows() {
    for (var s = 0u; s < ROW_SLOTS; s++) {
        let up_y = pixels[s].top + tap / KERNEL;
        let up_x = pixels[s].left + tap % KERNEL;
        // `&` instead of `&&`, which would be a branch.
        within[s] = (up_y < params.h * UPSAMPLE) & (up_x < params.w * UPSAMPLE);
        places[s] = select(0u, (pixels[s].line + up_y / UPSAMPLE) * params.w + up_x / UPSAMPLE, within[s]);
    }
}

// Moves on to the tap of `k4`, and loads the parameters of the norm. Returns whether the channels are in `x2`.
fn fetch_k(k4: u32) -> bool {
    let own_tap = k4 / params.ci4;
    if own_tap != tap {
        tap = own_tap;
        place_rows();
    }
    let c4 = k4 - tap * params.ci4;
    fetch_norm(c4, params.ci4);
    return is_second(c4);
}

// Loads vec4 `k4` of the pixel in `slot`. Outside the input it loads from row 0, and `made_x` discards the value.
fn fetch_x(slot: u32, row: u32, k4: u32, second: bool) -> Input {
    return fetch_source(places[slot], k4 - tap * params.ci4, params.ci4, second);
}

// Normalises a loaded vec4. Outside the input it is zero.
fn made_x(slot: u32, k4: u32, fetched: Input) -> vec4<f32> {
    let c4 = k4 % params.ci4;
    return select(vec4<f32>(0.0), made(fetched, pixels[slot].norm, c4, params.ci4), within[slot]);
}

// Normalises a loaded vec4, in the storage type. Outside the input it is zero.
fn made_pack_x(slot: u32, k4: u32, fetched: Input) -> Pack {
    let c4 = k4 % params.ci4;
    return pack_if(within[slot], made_pack(fetched, pixels[slot].norm, c4, params.ci4));
}
@end

// Returns the number of vec4s of k.
fn inner4() -> u32 { return KERNEL * KERNEL * params.ci4; }
@end

@if(ENDS)
@if(PHASED)
// Returns the output pixel of a pixel of x and the phase.
fn stored_row(row: u32) -> u32 {
    return (row / params.ow * 2u + phase / 2u) * 2u * params.ow + row % params.ow * 2u + phase % 2u;
}

// Returns the number of the moments of 64 pixels of x in the phase.
fn stored_moments(tile: u32) -> u32 { return tile * PHASES + phase; }
@end

// Loads the shift of four output channels, which depends on the image of the output pixel `row`.
fn fetch_shift(row: u32, col4: u32) -> Pack {
    var v = Pack();
    @if(SHIFT_IMAGE) v = shift[col4];
    @if(SHIFT_IMAGES) v = shift[row / (params.oh * params.ow) * params.cols4 + col4];
    return v;
}

// Adds the shift, if there is one.
fn shifted(v: vec4<f32>, fetched: Pack) -> vec4<f32> {
    var sum = v;
    @if(HAS_SHIFT) sum += load4(fetched);
    return sum;
}
@end
