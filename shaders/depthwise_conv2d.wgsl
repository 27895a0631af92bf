// Depthwise 3x3 convolution: y = conv(x, w) + bias + shift, channel by channel, and optionally the moments of y. The
// host side is kernels/src/depthwise_conv2d.rs.
//
// Operands: x [n, h, w, c], w [3, 3, c], bias [c], shift [n, c], y [n, oh, ow, c]. x may be concatenated with x2 along
// the channels. A workgroup computes 64 channels of 64 output positions, and an invocation one vec4 of channels of four
// positions. It handles RUN positions of one line at a time, which share 3 x (RUN + 2) inputs. These are loaded
// together and without branches, at clamped coordinates: compilers then issue all loads before they wait for the first.
#import grid
#import prologue
#import tile_moments

struct Params {
    n: u32,
    h: u32,
    w: u32,
    oh: u32,
    ow: u32,
    c4: u32,
    stride: u32,
    first4: u32,
    positions: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Input>; // [n, h, w, c], less the channels of x2
@group(0) @binding(2) var<storage, read> w: array<Pack>; // [3, 3, c]
@if(HAS_BIAS) @group(0) @binding(3) var<storage, read> bias: array<Pack>; // [c]
@if(HAS_SHIFT) @group(0) @binding(4) var<storage, read> shift: array<Pack>; // [n, c]
@if(HAS_X2) @group(0) @binding(5) var<storage, read> x2: array<Pack>; // [n, h, w, the rest of c]
@group(0) @binding(6) var<storage, read_write> y: array<Pack>; // [n, oh, ow, c]
@if(HAS_MOMENTS) @group(0) @binding(7) var<storage, read_write> moments: array<vec4<f32>>; // [tiles, 2, c]

// Number of input columns of a run. Runs of more than one position have a stride of one.
const COLS = RUN + 2u;

// Inputs of a run, [3, COLS], as stored, and the weights of this invocation's channels.
var<private> taps: array<Input, 3u * COLS>;
var<private> weights: array<Pack, 9>;

// Returns the input row (a pixel of x) of tap `t` of a run, clamped to the input. `top` and `left` are coordinates in
// the padded input, whose border of zeros is one pixel wide.
fn row_under(image: u32, top: u32, left: u32, t: u32) -> u32 {
    // Above the first line and left of the first column the subtraction wraps to a large number, which min clamps as
    // well.
    let line = image * params.h + min(top + t / COLS - 1u, params.h - 1u);
    return line * params.w + min(left + t % COLS - 1u, params.w - 1u);
}

// Loads all inputs of a run.
fn fetch_taps(image: u32, top: u32, left: u32, c4: u32, second: bool) {
    for (var t = 0u; t < 3u * COLS; t++) {
        taps[t] = fetch_source(row_under(image, top, left, t), c4, params.c4, second);
    }
}

// Returns the convolution at position `i` of a run. Taps in the border are zero.
fn convolved(top: u32, left: u32, i: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var t = 0u; t < 9u; t++) {
        let inside = (top + t / 3u - 1u < params.h) & (left + i + t % 3u - 1u < params.w);
        v += select(vec4<f32>(0.0), input4(taps[t / 3u * COLS + i + t % 3u]), inside) * load4(weights[t]);
    }
    return v;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile = row_tile(group, groups);
    let pixels = params.n * params.oh * params.ow;
    if tile * 64u >= pixels { return; }
    let count = min(64u, pixels - tile * 64u);
    let c4 = group.x * 16u + thread % 16u;
    let own4 = min(c4, params.c4 - 1u);
    for (var t = 0u; t < 9u; t++) { weights[t] = w[t * params.c4 + own4]; }
    @if(HAS_BIAS) let own_bias = bias[own4];
    @if(HAS_MOMENTS) var written: array<vec4<f32>, 4>;
    for (var first = 0u; first < 4u; first += RUN) {
        let at = 4u * (thread / 16u) + first;
        // `count` is a multiple of RUN, so a run is either complete or entirely beyond the last position.
        let pixel = tile * 64u + min(at, count - RUN);
        let line = pixel / params.ow;
        let image = line / params.oh;
        let top = line % params.oh * params.stride;
        let left = pixel % params.ow * params.stride;
        // One branch around all loads, instead of one for each.
        if is_second(own4) { fetch_taps(image, top, left, own4, true); } else { fetch_taps(image, top, left, own4, false); }
        @if(HAS_SHIFT) let own_shift = shift[image * params.c4 + own4];
        for (var i = 0u; i < RUN; i++) {
            var v = convolved(top, left, i);
            @if(HAS_BIAS) v += load4(own_bias);
            @if(HAS_SHIFT) v += load4(own_shift);
            if at >= count || c4 >= params.c4 { continue; }
            y[(pixel + i) * params.c4 + c4] = store4(v);
            @if(HAS_MOMENTS) written[first + i] = v;
        }
    }
    @if(HAS_MOMENTS)
    let found = tile_moments(written, count, thread);
    if thread < 16u && c4 < params.c4 {
        moments[2u * tile * params.c4 + c4] = found.mean;
        moments[(2u * tile + 1u) * params.c4 + c4] = found.variance;
    }
    @end
}
