// Input of a kernel with a fused prologue: reads vec4s of a row of `x`, or of `x` and `x2` concatenated along the
// channels, and normalises them on the way. The host side is kernels/src/prologue.rs.
//
// Norms: NORM_ROWS is a LayerNorm, (x - mean) * rstd * weight + bias, with statistics merged from the moments of each
// row in `stats`; `Params` then also has `channels` and `eps`. NORM_CHANNELS is a GroupNorm, activation(x * scale +
// offset) with scales and offsets per channel and image. NORM_IMAGE means that all rows that an invocation reads belong
// to one image, NORM_IMAGES that they may belong to several; NORM_ENTERS means that the one is not always the first, and
// that the kernel calls `enter_image`. TOUCHED means that values are changed or converted at all.
//
// Reading is split into loads (`fetch_...`) and arithmetic (`made...`). A kernel first issues the loads of many vec4s
// and computes afterwards, so that the latencies of all loads overlap. The importing module declares the operands that
// are present and, in `Params`, `first4` (vec4s of a row of `x`) and `positions` (rows of an image). `k4` counts vec4s
// of a row of both tensors together, and `k4_len` is their number.
#import activation

// Stored vec4 of `x`, and its conversion to f32.
@if(X_F32) alias Input = vec4<f32>;
@if(!X_F32) alias Input = Pack;
@if(X_F32) fn input4(v: Input) -> vec4<f32> { return v; }
@if(!X_F32) fn input4(v: Input) -> vec4<f32> { return load4(v); }

// Returns whether vec4 `k4` of a row is in `x2`.
fn is_second(k4: u32) -> bool {
    @if(HAS_X2) if k4 >= params.first4 { return true; }
    return false;
}

// Loads vec4 `k4` of a row, from `x2` if `second`.
fn fetch_source(row: u32, k4: u32, k4_len: u32, second: bool) -> Input {
    @if(HAS_X2)
    if second {
        let v = x2[row * (k4_len - params.first4) + k4 - params.first4];
        @if(X_F32) return load4(v);
        @if(!X_F32) return v;
    }
    @end
    return x[row * params.first4 + k4];
}

// Parameters of the norm at the current vec4 of channels, loaded once for many rows.
@if(NORM_ROWS) var<private> norm_scale: Pack;
@if(NORM_ROWS) var<private> norm_offset: Pack;
@if(NORM_IMAGE) var<private> norm_scale: vec4<f32>;
@if(NORM_IMAGE) var<private> norm_offset: vec4<f32>;
// Index of the image's scales in `norm`.
@if(NORM_IMAGE) var<private> norm_image: u32;

// Says to which of several images all rows that this invocation reads belong.
fn enter_image(image: u32, k4_len: u32) {
    @if(NORM_ENTERS) norm_image = image * 2u * k4_len;
}

// Loads the parameters of the norm at `k4`. With NORM_IMAGES they depend on the row, and `made` loads them.
fn fetch_norm(k4: u32, k4_len: u32) {
    @if(NORM_ROWS) norm_scale = norm_weight[k4];
    @if(NORM_ROWS) norm_offset = norm_bias[k4];
    @if(NORM_IMAGE) norm_scale = norm[norm_image + k4];
    @if(NORM_IMAGE) norm_offset = norm[norm_image + k4 + k4_len];
}

// Parameters of the norm of a row: its mean and reciprocal standard deviation, or the index of its image's scales in
// `norm`.
struct RowNorm {
    @if(NORM_ROWS) mean: f32,
    @if(NORM_ROWS) rstd: f32,
    image: u32,
}

@if(NORM_ROWS)
// Number of vec4s of moments that are loaded together.
const AT_ONCE = 4u;

// Returns mean and reciprocal standard deviation of a row, merged from its moments over blocks of 32 channels. Sums are
// relative to the mean of the first block, so that a large mean does not cancel digits of the variance. Loads have no
// branches: indices are clamped, and blocks beyond the last have no channels.
fn merged(row: u32) -> vec2<f32> {
    let blocks4 = (params.channels + 127u) / 128u;
    let first = 2u * row * blocks4;
    let origin = stats[first].x;
    var means: array<vec4<f32>, AT_ONCE>;
    var variances: array<vec4<f32>, AT_ONCE>;
    var sum = 0.0;
    var squares = 0.0;
    for (var begin = 0u; begin < blocks4; begin += AT_ONCE) {
        for (var i = 0u; i < AT_ONCE; i++) {
            let place = first + min(begin + i, blocks4 - 1u);
            means[i] = stats[place];
            variances[i] = stats[place + blocks4];
        }
        for (var i = 0u; i < AT_ONCE; i++) {
            let channel = 128u * (begin + i) + vec4<u32>(0u, 32u, 64u, 96u);
            let count = vec4<f32>(min(vec4<u32>(32u), max(vec4<u32>(params.channels), channel) - channel));
            let d = means[i] - origin;
            sum += dot(count, d);
            squares += dot(count, variances[i] + d * d);
        }
    }
    let share = 1.0 / f32(params.channels);
    let shifted = sum * share;
    let variance = max(squares * share - shifted * shifted, 0.0);
    return vec2<f32>(origin + shifted, 1.0 / sqrt(variance + params.eps));
}
@end

// Returns the parameters of the norm of a row, except for the statistics of NORM_ROWS.
fn row_norm(row: u32, k4_len: u32) -> RowNorm {
    var found = RowNorm();
    @if(NORM_IMAGES) found.image = row / params.positions * 2u * k4_len;
    return found;
}

// Converts a loaded vec4 to f32 and normalises it. `row` holds the parameters of its row.
fn made(fetched: Input, row: RowNorm, k4: u32, k4_len: u32) -> vec4<f32> {
    var v = input4(fetched);
    @if(NORM_ROWS) v = (v - row.mean) * row.rstd * load4(norm_scale) + load4(norm_offset);
    @if(NORM_IMAGE) v = activate(NORM_ACTIVATION, v * norm_scale + norm_offset);
    @if(NORM_IMAGES) v = activate(NORM_ACTIVATION, v * norm[row.image + k4] + norm[row.image + k4 + k4_len]);
    return v;
}

// Normalises a loaded vec4 and returns it in the storage type.
@if(TOUCHED)
fn made_pack(fetched: Input, row: RowNorm, k4: u32, k4_len: u32) -> Pack { return store4(made(fetched, row, k4, k4_len)); }
@else
fn made_pack(fetched: Input, row: RowNorm, k4: u32, k4_len: u32) -> Pack { return fetched; }
@end

// Loads and normalises vec4 `k4` of a row.
fn load_source(row: u32, k4: u32, k4_len: u32) -> vec4<f32> {
    fetch_norm(k4, k4_len);
    return made(fetch_source(row, k4, k4_len, is_second(k4)), row_norm(row, k4_len), k4, k4_len);
}
