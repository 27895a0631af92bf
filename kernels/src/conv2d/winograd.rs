//! 3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3): 16 products per tile of 2x2 output pixels where the
//! definition has 36, and 9 where the input is upsampled.
//!
//! A tile's input, 4x4 pixels, is transformed to `B' d B`, the weights when they are loaded to `G g G'`; each of the 16
//! places is one matrix product over all tiles of a block, `[tiles, ci] x [ci, co]`, and `A' m A` is the output. Upsampled by
//! nearest neighbour, the 4x4 pixels are `a b b c` in both directions, and the third of `a-b, 2b, 0, b-c` falls out: a
//! tile is 3x3 pixels of the input as it is, and there are 9 places. `N` is 4 or 3: the edge of both.

mod weights;

pub(crate) use weights::transformed_weights;

use super::Conv2d;
use crate::cpu::{Epilogue, Threads, wide};
use crate::kernel::Layout;
use crate::panels::{self, Left, PANEL};
use crate::source::Rows;
use std::array::from_fn;
use std::sync::{Mutex, PoisonError};

/// Channels a transform takes at once.
const LANES: usize = 16;

/// Values between two places of a block.
const SKEW: usize = 48;

type Lanes = [f32; LANES];

/// Fewest input or output channels: below, the transforms cost more than they save.
const FEWEST: usize = 32;

/// Fewest rows of tiles of a task whose input has to be made ready.
const ROWS: usize = 8;

/// Whether this way suits the problem: whatever the size of the picture, so that weights are laid out in one way.
pub(super) fn suits(conv: &Conv2d) -> bool {
    let form = (conv.kernel, conv.stride, conv.pad_start, conv.pad_end) == (3, 1, 1, 1) && conv.upsample <= 2;
    let channels = |c: usize| c >= FEWEST && c.is_multiple_of(LANES);
    form && channels(conv.ci) && channels(conv.co)
}

/// Places along the edge of a tile.
fn edge(conv: &Conv2d) -> usize {
    if conv.upsample == 1 { 4 } else { 3 }
}

/// How the weights lie in memory.
pub(super) fn layout(conv: &Conv2d) -> Layout {
    if suits(conv) { Layout::Winograd(edge(conv)) } else { Layout::Panels }
}

/// The convolution, in blocks of about `block` tiles.
pub(super) fn run(conv: &Conv2d, block: usize, x: &Rows<'_>, w: &[f32], epilogue: &Epilogue<'_>, y: &mut [f32]) {
    match conv.upsample {
        1 => run_with::<4>(conv, block, x, w, epilogue, y),
        _ => run_with::<3>(conv, block, x, w, epilogue, y),
    }
}

/// Tiles a block should have: the block's transformed input and output and a place's weights want to lie in a core's
/// share of the cache, but every block reads all the weights once.
pub(super) fn block(conv: &Conv2d) -> usize {
    // Processors without vectors of 16 have smaller caches, too: 512 KiB a core on AMD's Zen 3, where this was measured.
    let (values, fewest) = if panels::grain(PANEL) == PANEL { (1 << 19, 96) } else { (1 << 18, 48) };
    // Weights that leave the cache between two blocks anyway: fewer, larger blocks read them less often.
    const LARGE: usize = 1 << 17;
    let places = edge(conv) * edge(conv);
    let tiles = values / (places * (conv.ci + conv.co));
    let tiles = if conv.ci * conv.co > LARGE { 256 } else { tiles.max(fewest) };
    tiles.min(Tiles::of(conv).count().div_ceil(rayon::current_num_threads())).max(1)
}

/// Rows of tiles and tiles in a row, of one image.
#[derive(Clone, Copy)]
struct Tiles {
    images: usize,
    rows: usize,
    cols: usize,
}

impl Tiles {
    fn of(conv: &Conv2d) -> Self {
        let (oh, ow) = conv.out_size();
        Self { images: conv.n, rows: oh.div_ceil(2), cols: ow.div_ceil(2) }
    }

    fn count(self) -> usize {
        self.images * self.rows * self.cols
    }
}

fn run_with<const N: usize>(
    conv: &Conv2d,
    block: usize,
    x: &Rows<'_>,
    w: &[f32],
    epilogue: &Epilogue<'_>,
    y: &mut [f32],
) {
    let (oh, ow) = conv.out_size();
    let tiles = Tiles::of(conv);
    // Whole rows of tiles are a task, since their output is one piece of memory; a row may be several blocks.
    // Lines that have to be made ready are so for a few rows together, because the outer ones are under two tasks.
    let fair = tiles.rows.div_ceil(rayon::current_num_threads());
    let at_least = if x.plain().is_some() { 1 } else { ROWS.min(fair) };
    let rows = (block / tiles.cols).max(at_least);
    let image = y.chunks_mut(oh * ow * conv.co).enumerate();
    let tasks = image.flat_map(|(image, y)| {
        y.chunks_mut(2 * rows * ow * conv.co).enumerate().map(move |(i, y)| (image, i * rows, y))
    });
    let tasks = Mutex::new(tasks);
    let len = block.min(rows * tiles.cols);
    // Places a power of two apart would share the same few sets of the cache.
    let (place_in, place_out) = (len * conv.ci + SKEW, len * conv.co + SKEW);
    let zeros = vec![0.0; conv.ci];
    // One scratch a thread for the whole call: as parts of a parallel iterator there would be one a piece.
    rayon::broadcast(|_| {
        let mut input = Vec::new();
        let mut output = Vec::new();
        let mut scratch = Vec::new();
        loop {
            let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((image, first_row, y)) = task else { return };
            input.resize(N * N * place_in, 0.0);
            output.resize(N * N * place_out, 0.0);
            let inside = y.len() / (ow * conv.co);
            let count = inside.div_ceil(2) * tiles.cols;
            let x = ready::<N>(conv, x, image, (first_row, inside.div_ceil(2)), &mut scratch);
            let mut finished = 0;
            for first in (0..count).step_by(len) {
                let at = |i: usize| ((first + i) / tiles.cols, (first + i) % tiles.cols);
                let now = len.min(count - first);
                wide(
                    #[inline(always)]
                    || {
                        for i in 0..now {
                            let (row, col) = at(i);
                            let pixels = source::<N>(conv, &x, &zeros, first_row + row, col);
                            transform_input(&pixels, &mut input, i * conv.ci, place_in);
                        }
                    },
                );
                multiply_places::<N>(conv, w, (&input, place_in), (&mut output, place_out), now);
                // Whole lines are finished while they are in the cache.
                let done = if first + now == count { inside } else { 2 * ((first + now) / tiles.cols) };
                wide(
                    #[inline(always)]
                    || {
                        for i in 0..now {
                            let (row, col) = at(i);
                            let columns = if 2 * col + 1 < ow { 2 } else { 1 };
                            let mut lines = y[2 * row * ow * conv.co..].chunks_mut(ow * conv.co).take(2);
                            let piece = |line| cut(line, 2 * col * conv.co, columns * conv.co);
                            let (upper, lower) = (lines.next().map(piece), lines.next().map(piece));
                            let upper = upper.expect("a row of tiles has output");
                            transform_output::<N>(&output, i * conv.co, place_out, conv.co, upper, lower);
                        }
                        let lines = &mut y[finished * ow * conv.co..done * ow * conv.co];
                        epilogue.apply(lines, conv.co, (image * oh + 2 * first_row + finished) * ow);
                    },
                );
                finished = done;
            }
        }
    });
}

/// The products of all places: `rows` tiles each.
fn multiply_places<const N: usize>(
    conv: &Conv2d,
    w: &[f32],
    (input, place_in): (&[f32], usize),
    (output, place_out): (&mut [f32], usize),
    rows: usize,
) {
    for place in 0..N * N {
        let input = Left::new(&input[place * place_in..], rows, conv.ci);
        let output = &mut output[place * place_out..][..rows * conv.co];
        for first in (0..conv.co).step_by(PANEL) {
            let width = PANEL.min(conv.co - first);
            let values = &w[(first * N * N + place * width) * conv.ci..][..width * conv.ci];
            panels::multiply_part(output, conv.co, first, input, (values, width, conv.ci));
        }
    }
}

#[inline(always)]
fn cut(line: &mut [f32], from: usize, len: usize) -> &mut [f32] {
    &mut line[from..from + len]
}

/// Lines of the input of an image, from `first` on.
struct Lines<'a> {
    first: usize,
    values: &'a [f32],
}

/// The lines under `rows` rows of tiles: where they lie, or ready in `scratch`.
fn ready<'a, const N: usize>(
    conv: &Conv2d,
    x: &Rows<'a>,
    image: usize,
    (first_row, rows): (usize, usize),
    scratch: &'a mut Vec<f32>,
) -> Lines<'a> {
    if let Some(values) = x.plain() {
        return Lines { first: 0, values: &values[image * conv.h * conv.w * conv.ci..] };
    }
    let step = if N == 4 { 2 } else { 1 };
    let first = (first_row * step).saturating_sub(1);
    let end = ((first_row + rows - 1) * step + N - 1).min(conv.h);
    scratch.resize((end - first) * conv.w * conv.ci, 0.0);
    x.make_ready((image * conv.h + first) * conv.w, scratch, Threads::One);
    Lines { first, values: scratch }
}

/// The pixels under a tile; outside of the image they are zero.
#[inline(always)]
fn source<'a, const N: usize>(
    conv: &Conv2d,
    x: &Lines<'a>,
    zeros: &'a [f32],
    row: usize,
    col: usize,
) -> [[&'a [f32]; N]; N] {
    // The first pixel is one before the tile's own, of which there are two in a row if the input is not upsampled.
    let step = if N == 4 { 2 } else { 1 };
    from_fn(|i| {
        let iy = (row * step + i).wrapping_sub(1);
        from_fn(|j| {
            let ix = (col * step + j).wrapping_sub(1);
            let inside = iy < conv.h && ix < conv.w;
            if inside { &x.values[((iy - x.first) * conv.w + ix) * conv.ci..][..conv.ci] } else { zeros }
        })
    })
}

#[inline(always)]
fn load(from: &[f32], at: usize) -> Lanes {
    from[at..at + LANES].try_into().expect("a slice of that length")
}

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> Lanes {
    from_fn(f)
}

/// `B' d` of one line.
#[inline(always)]
fn input_line<const N: usize>(d: [Lanes; N]) -> [Lanes; N] {
    let minus = |a: usize, b: usize| lanes(|l| d[a][l] - d[b][l]);
    let plus = |a: usize, b: usize| lanes(|l| d[a][l] + d[b][l]);
    from_fn(|i| match (N, i) {
        (4, 0) => minus(0, 2),
        (4, 1) => plus(1, 2),
        (4, 2) => minus(2, 1),
        (4, _) => minus(1, 3),
        (_, 0) => minus(0, 1),
        (_, 1) => plus(1, 1),
        (_, _) => minus(1, 2),
    })
}

/// `A' m` of one line.
#[inline(always)]
fn output_line<const N: usize>(m: [Lanes; N]) -> [Lanes; 2] {
    if N == 4 {
        [lanes(|l| m[0][l] + m[1][l] + m[2][l]), lanes(|l| m[1][l] - m[2][l] - m[3][l])]
    } else {
        [lanes(|l| m[0][l] + m[1][l]), lanes(|l| m[1][l] - m[2][l])]
    }
}

/// Writes `B' d B` of a tile, every place `stride` from the one before, starting at `at`.
#[inline(always)]
fn transform_input<const N: usize>(pixels: &[[&[f32]; N]; N], out: &mut [f32], at: usize, stride: usize) {
    for c in (0..pixels[0][0].len()).step_by(LANES) {
        let rows: [[Lanes; N]; N] = from_fn(|i| input_line(from_fn(|j| load(pixels[i][j], c))));
        let both: [[Lanes; N]; N] = from_fn(|j| input_line(from_fn(|i| rows[i][j])));
        for (j, column) in both.iter().enumerate() {
            for (i, value) in column.iter().enumerate() {
                out[(i * N + j) * stride + at + c..][..LANES].copy_from_slice(value);
            }
        }
    }
}

/// Writes `A' m A` of a tile: one or two rows of one or two pixels.
#[inline(always)]
fn transform_output<const N: usize>(
    m: &[f32],
    at: usize,
    stride: usize,
    co: usize,
    upper: &mut [f32],
    mut lower: Option<&mut [f32]>,
) {
    for c in (0..co).step_by(LANES) {
        let rows: [[Lanes; 2]; N] = from_fn(|i| output_line::<N>(from_fn(|j| load(m, (i * N + j) * stride + at + c))));
        for column in 0..upper.len() / co {
            let values = output_line::<N>(from_fn(|i| rows[i][column]));
            upper[column * co + c..][..LANES].copy_from_slice(&values[0]);
            if let Some(lower) = &mut lower {
                lower[column * co + c..][..LANES].copy_from_slice(&values[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv2d::direct::side_by_side;
    use crate::kernel::{Activation, Kernel};
    use crate::panels::Panels;

    #[test]
    fn every_block_gives_what_the_definition_gives() {
        for (upsample, h, w) in [(1, 9, 13), (1, 8, 6), (2, 5, 7)] {
            let (n, ci, co) = (2, 32, 80);
            let conv = Conv2d {
                n,
                h,
                w,
                ci,
                co,
                kernel: 3,
                stride: 1,
                pad_start: 1,
                pad_end: 1,
                upsample,
                bias: true,
                shift: true,
                activation: Activation::Relu,
                residual: true,
                ..Conv2d::default()
            };
            let whole = |len: usize| (0..len).map(|i| ((i * 7919) % 9) as f32 - 4.0).collect::<Vec<f32>>();
            let [x, w, bias, shift, residual] = <[Vec<f32>; 5]>::try_from(
                conv.operands().iter().take(5).map(|o| whole(o.host_len())).collect::<Vec<_>>(),
            )
            .expect("a convolution reads five operands");
            let (oh, ow) = conv.out_size();
            let epilogue = Epilogue {
                bias: &bias,
                shift: &shift,
                rows_per_image: oh * ow,
                activation: conv.activation,
                residual: &residual,
            };
            // Whole numbers stay exact on both ways.
            let mut want = vec![f32::NAN; n * oh * ow * co];
            let panels = Layout::Panels.pack(&[co, ci, 3, 3], w.clone());
            let w = layout(&conv).pack(&[co, ci, 3, 3], w);
            let x = conv.source.rows(n * h * conv.w, ci, &x, &[&[] as &[f32]; 5]);
            side_by_side(&conv, 16, &x, Panels::new(&panels, co, 9 * ci), &epilogue, &mut want);
            for block in [1, 3, 7, 20, 1000] {
                let mut y = vec![f32::NAN; want.len()];
                run(&conv, block, &x, &w, &epilogue, &mut y);
                assert_eq!(y, want, "{conv:?} in blocks of {block}");
            }
        }
    }
}
