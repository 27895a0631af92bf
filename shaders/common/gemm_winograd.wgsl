// 3x3 convolution of stride 1 by Winograd's algorithm F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): 16
// multiplications for four outputs, where the definition has 36. The host side is kernels/src/conv2d/blocks.rs. This
// file replaces common/gemm.wgsl, and its sums are laid out in the same way.
//
// A workgroup computes a block of 128 output pixels, 32 squares of 2x2 pixels, of 32 output channels. For every vec4 of
// input channels, invocations transform the 4x4 pixels under each square to B^T d B, and the weights to G g G^T. For
// each of the 16 elements of the results, 16 invocations multiply the squares by the weights and accumulate 8 squares
// of 8 channels each. At the end the products m become outputs, A^T m A. Nothing that is transformed is written to
// memory, and weights have the layout of all other convolutions.
//
// A block is BLOCK_W pixels wide, and divides the map. Sums are ordered so that every aligned run of 64 rows holds 64
// consecutive pixels of the map, as moments need: one line of a block that is 64 wide (LONG_LINES), otherwise half of
// the block.
//
// The importing module declares the operands and `Params`, with h, w and ci4, imports common/prologue.wgsl, and defines
// fetch_w and fetch_scale as for common/gemm.wgsl. This file defines stored_row and stored_moments of
// common/product.wgsl.
#import gemm_sums
#import multiplied
#import scratch
#import gemm_columns
const THREADS = LAYER;
const SQUARES = 32u;
const COLS = 32u;
const SQUARES_X = BLOCK_W / 2u;
const BLOCK_H = TILE_ROWS / BLOCK_W;
// Workgroup memory: transformed inputs as [16, SQUARES], then transformed weights as [16, 4, COLS / 4], where the 4
// counts the columns of a vec4; in vec4s of k.
const FIRST_COL = 16u * SQUARES;
const_assert THREADS == 256u && TILE_ROWS == 4u * SQUARES && 4u * TILE_QUADS == COLS && ROWS_EACH == 4u;
const_assert SCRATCH == FIRST_COL + 16u * COLS;

// Pixel of the map at which the block of a row begins: its line, counted over all images, and its column.
fn block_origin(row: u32) -> vec2<u32> {
    let block = row / TILE_ROWS;
    let across = params.w / BLOCK_W;
    return vec2<u32>(block / across * BLOCK_H, block % across * BLOCK_W);
}

// Square of a block that is number `at` in the order of the products. They become outputs eight at a time. Without
// LONG_LINES four of the eight lie in each half of the block, because all sums of an invocation must belong to one run
// of 64 pixels.
fn square_of(at: u32) -> u32 {
    @if(LONG_LINES) return at;
    @if(!LONG_LINES) return at % 8u / 4u * 16u + at / 8u * 4u + at % 4u;
}

// Where an output lies: the number of its square among eight, and its pixel in the square.
struct Place {
    square: u32,
    down: u32,
    right: u32,
}

// Returns the place of the output of invocation row `y` of 32, among those of eight squares.
fn place_of(y: u32) -> Place {
    @if(LONG_LINES) return Place(y % 16u / 2u, y / 16u, y % 2u);
    @if(!LONG_LINES) return Place(y / 4u, y % 4u / 2u, y % 2u);
}

// Returns the row of y of a row of the sums.
fn stored_row(row: u32) -> u32 {
    let place = place_of(row % TILE_ROWS / ROWS_EACH);
    let square = square_of(row % ROWS_EACH * 8u + place.square);
    let origin = block_origin(row);
    let line = origin.x + square / SQUARES_X * 2u + place.down;
    return line * params.w + origin.y + square % SQUARES_X * 2u + place.right;
}

// Returns the number of the moments of 64 rows of the sums.
fn stored_moments(tile: u32) -> u32 {
    @if(LONG_LINES)
    let origin = block_origin(tile * 64u);
    return ((origin.x + tile % 2u) * params.w + origin.y) / 64u;
    @else
    return tile;
    @end
}

// What an invocation transforms: line `own_line` of the 4x4 elements of square or column `own_at`.
var<private> own_line: u32;
var<private> own_at: u32;
// For a square: the two lines of pixels that make up the line of elements, as the indices of their first pixels, and
// the four columns of pixels. Both are clamped to the map.
var<private> lines: vec2<u32>;
var<private> lines_within: vec2<bool>;
var<private> columns: vec4<u32>;
var<private> columns_within: vec4<bool>;
// Pixels of a square, or taps of a column, at the next vec4 of channels.
var<private> next_x: array<Input, 8>;
var<private> next_w: array<WeightPack, 9>;

// Says what invocation `thread` transforms, and enters the block's image.
fn prepare(row0: u32, thread: u32) {
    own_line = thread / 32u % 4u;
    own_at = thread % 32u;
    let square = square_of(own_at);
    let origin = block_origin(row0);
    let image = origin.x / params.h;
    // Lines above the image, and columns to the left of it, wrap around to large numbers.
    let line = origin.x % params.h + square / SQUARES_X * 2u - 1u;
    let column = origin.y + square % SQUARES_X * 2u - 1u;
    // B^T d: lines 0 and 2, 1 and 2, 2 and 1, 1 and 3 of the pixels.
    let first = select(own_line, 1u, own_line == 3u);
    let second = select(select(2u, 1u, own_line == 2u), 3u, own_line == 3u);
    let own_lines = line + vec2<u32>(first, second);
    let own_columns = column + vec4<u32>(0u, 1u, 2u, 3u);
    lines_within = own_lines < vec2<u32>(params.h);
    columns_within = own_columns < vec4<u32>(params.w);
    lines = (image * params.h + select(vec2<u32>(0u), own_lines, lines_within)) * params.w;
    columns = select(vec4<u32>(0u), own_columns, columns_within);
    enter_image(image, params.ci4);
}

// Loads vec4 `c4` of the channels: half of the invocations those of the squares, the others those of the weights.
fn fetch(col0: u32, c4: u32, thread: u32) {
    if thread < THREADS / 2u {
        fetch_norm(c4, params.ci4);
        // One branch around all loads, instead of one for each pixel.
        if is_second(c4) {
            for (var i = 0u; i < 8u; i++) {
                next_x[i] = fetch_source(lines[i / 4u] + columns[i % 4u], c4, params.ci4, true);
            }
        } else {
            for (var i = 0u; i < 8u; i++) {
                next_x[i] = fetch_source(lines[i / 4u] + columns[i % 4u], c4, params.ci4, false);
            }
        }
    } else {
        // Column `at % 8 * 4 + at / 8` is staged at `at`, so that neighbouring invocations store to different banks.
        let col = own_at % 8u * 4u + own_at / 8u;
        for (var tap = 0u; tap < 9u; tap++) { next_w[tap] = fetch_w(col0, 0u, col, tap * params.ci4 + c4); }
    }
}

// Returns loaded pixel `i`, normalised; outside the map it is zero. All pixels of a block belong to one image.
fn made_x(i: u32, c4: u32) -> vec4<f32> {
    let within = lines_within[i / 4u] & columns_within[i % 4u];
    return select(vec4<f32>(0.0), made(next_x[i], RowNorm(), c4, params.ci4), within);
}

// Returns column `i` of B^T d: the first line of pixels plus `sign` times the second.
fn made_line(i: u32, c4: u32, sign: vec4<f32>) -> vec4<f32> { return fma(sign, made_x(i + 4u, c4), made_x(i, c4)); }

// Returns column `i` of G g: the sum of the three lines of taps times `factors`.
fn made_taps(i: u32, factors: vec4<f32>) -> vec4<f32> {
    return factors.x * weight4(next_w[i]) + factors.y * weight4(next_w[i + 3u]) + factors.z * weight4(next_w[i + 6u]);
}

// Transforms what `fetch` loaded.
fn stage(c4: u32, thread: u32) {
    if thread < THREADS / 2u {
        let sign = select(vec4<f32>(-1.0), vec4<f32>(1.0), vec4<bool>(own_line == 1u));
        let a = made_line(0u, c4, sign);
        let b = made_line(1u, c4, sign);
        let c = made_line(2u, c4, sign);
        let d = made_line(3u, c4, sign);
        let at = 4u * own_line * SQUARES + own_at;
        scratch[at] = a - c;
        scratch[at + SQUARES] = b + c;
        scratch[at + 2u * SQUARES] = c - b;
        scratch[at + 3u * SQUARES] = b - d;
    } else {
        var factors = vec4<f32>(0.5, 0.5, 0.5, 0.0);
        if own_line == 0u { factors = vec4<f32>(1.0, 0.0, 0.0, 0.0); }
        if own_line == 2u { factors = vec4<f32>(0.5, -0.5, 0.5, 0.0); }
        if own_line == 3u { factors = vec4<f32>(0.0, 0.0, 1.0, 0.0); }
        let a = made_taps(0u, factors);
        let b = made_taps(1u, factors);
        let c = made_taps(2u, factors);
        let at = FIRST_COL + 4u * own_line * COLS + own_at;
        scratch[at] = a;
        scratch[at + COLS] = 0.5 * (a + b + c);
        scratch[at + 2u * COLS] = 0.5 * (a - b + c);
        scratch[at + 3u * COLS] = c;
    }
}

// Exchanges the products of eight squares, of which this invocation has two vec4s of columns of two squares: `a` and
// `b`, `c` and `d`. Returns its output of the eight.
fn exchanged(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, thread: u32) -> vec4<f32> {
    // [16, 8, COLS / 4]
    let at = thread / 16u * 64u + thread % 16u / 4u * 8u + thread % 4u;
    scratch[at] = a;
    scratch[at + 4u] = b;
    scratch[at + 32u] = c;
    scratch[at + 36u] = d;
    workgroupBarrier();
    let place = place_of(thread / THREADS_X);
    let first = (4u * place.down + place.right) * 64u + place.square * 8u + thread % THREADS_X;
    // A^T m A: three lines and columns of elements, from the output's own on. The last two are negative below or to the
    // right.
    let sign = select(vec2<f32>(1.0), vec2<f32>(-1.0), vec2<u32>(place.down, place.right) == vec2<u32>(1u));
    var sums: array<vec4<f32>, 3>;
    for (var i = 0u; i < 3u; i++) {
        let line = first + i * 256u;
        sums[i] = scratch[line] + sign.y * (scratch[line + 64u] + scratch[line + 128u]);
    }
    workgroupBarrier();
    return sums[0] + sign.x * (sums[1] + sums[2]);
}

// Computes the block from row `row0` and column `col0`, over all channels. Returns the sums of invocation `thread`, as
// in common/gemm.wgsl.
fn gemm_tile(row0: u32, col0: u32, first4: u32, end4: u32, thread: u32) -> Sums {
    // Products of one element: of square `i` and vec4 `j` of columns at `2 * i + j`.
    var m: array<vec4<f32>, 16>;
    var cols: array<vec4<f32>, 8>;
    let element = thread / 16u;
    let row = element * SQUARES + thread % 16u / 4u;
    let col = FIRST_COL + element * COLS + thread % 4u;
    prepare(row0, thread);
    fetch(col0, 0u, thread);
    for (var c4 = 0u; c4 < params.ci4; c4++) {
        stage(c4, thread);
        // Loads begin before the barrier, which covers a part of their latency.
        if c4 + 1u < params.ci4 { fetch(col0, c4 + 1u, thread); }
        workgroupBarrier();
        for (var c = 0u; c < 8u; c++) { cols[c] = scratch[col + c % 4u * (COLS / 4u) + c / 4u * 4u]; }
        for (var i = 0u; i < 8u; i++) {
            let x = scratch[row + 4u * i];
            m[2u * i] = multiplied(x, cols[0], cols[1], cols[2], cols[3], m[2u * i]);
            m[2u * i + 1u] = multiplied(x, cols[4], cols[5], cols[6], cols[7], m[2u * i + 1u]);
        }
        workgroupBarrier();
    }
    var sums: Sums;
    sums[0] = exchanged(m[0], m[1], m[2], m[3], thread);
    sums[1] = exchanged(m[4], m[5], m[6], m[7], thread);
    sums[2] = exchanged(m[8], m[9], m[10], m[11], thread);
    sums[3] = exchanged(m[12], m[13], m[14], m[15], thread);
    return scaled(sums, col0, thread);
}
