//! 3x3 convolutions of stride 1 by Winograd's algorithm: F(4x4, 3x3), 36 products per tile of 4x4 output pixels where the
//! definition has 144; with few channels F(2x2, 3x3), 16 where it has 36; and 9 where the input is upsampled.
//!
//! A tile's input, `N` by `N` pixels, is transformed to `B' d B`, the weights when they are loaded to `G g G'`; each of the
//! `N * N` places is one matrix product over all tiles of a block, `[tiles, ci] x [ci, co]`, and `A' m A` is the output,
//! `M` by `M` pixels. `lines` has the three matrices.

mod lines;
mod transform;
mod weights;

pub(crate) use weights::transformed_weights;

use super::Conv2d;
use crate::channel_moments;
use crate::cpu::{Epilogue, Threads, wide};
use crate::kernel::Layout;
use crate::panels::{self, Left, PANEL, STEP};
use crate::source::Rows;
use crate::tile::TILE;
use std::sync::{Mutex, PoisonError};
use transform::{Inputs, Outputs};

/// Values between two places of a block.
const SKEW: usize = 48;

/// Fewest input or output channels: below, the transforms cost more than they save.
const FEWEST: usize = 32;

/// Fewest input and output channels for tiles of 4x4: with fewer, its transforms cost more than it saves over tiles of 2x2.
const FEWEST_LARGE: usize = 64;

/// Fewest rows of tiles of a task whose input has to be made ready.
const ROWS: usize = 8;

/// Whether this way suits the problem: whatever the size of the picture, so that weights are laid out in one way.
pub(super) fn suits(conv: &Conv2d) -> bool {
    let form = (conv.kernel, conv.stride, conv.pad_start, conv.pad_end) == (3, 1, 1, 1) && conv.upsample <= 2;
    let channels = |c: usize| c >= FEWEST && c.is_multiple_of(STEP);
    form && channels(conv.ci) && channels(conv.co)
}

/// Places along the edge of a tile.
fn edge(conv: &Conv2d) -> usize {
    match conv.upsample {
        1 if conv.ci.min(conv.co) >= FEWEST_LARGE => 6,
        1 => 4,
        _ => 3,
    }
}

/// Output pixels along the edge of a tile.
fn tile(conv: &Conv2d) -> usize {
    if edge(conv) == 6 { 4 } else { 2 }
}

/// Whether whole numbers give whole numbers: with tiles of 4x4 weights are divided by multiples of three.
pub(super) fn is_exact(conv: &Conv2d) -> bool {
    !suits(conv) || tile(conv) == 2
}

/// How the weights lie in memory.
pub(super) fn layout(conv: &Conv2d) -> Layout {
    if suits(conv) { Layout::Winograd(edge(conv)) } else { Layout::Panels }
}

/// The convolution and, if it is wanted, the moments of what it writes, in blocks of about `block` tiles.
pub(super) fn run(
    conv: &Conv2d,
    block: usize,
    x: &Rows<'_>,
    w: &[f32],
    epilogue: &Epilogue<'_>,
    y: (&mut [f32], &mut [f32]),
) {
    match edge(conv) {
        6 => run_with::<6, 4>(conv, block, x, w, epilogue, y),
        4 => run_with::<4, 2>(conv, block, x, w, epilogue, y),
        _ => run_with::<3, 2>(conv, block, x, w, epilogue, y),
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
        Self { images: conv.n, rows: oh.div_ceil(tile(conv)), cols: ow.div_ceil(tile(conv)) }
    }

    fn count(self) -> usize {
        self.images * self.rows * self.cols
    }
}

fn run_with<const N: usize, const M: usize>(
    conv: &Conv2d,
    block: usize,
    x: &Rows<'_>,
    w: &[f32],
    epilogue: &Epilogue<'_>,
    (y, moments): (&mut [f32], &mut [f32]),
) {
    let (oh, ow) = conv.out_size();
    let tiles = Tiles::of(conv);
    // Whole rows of tiles are a task, since their output is one piece of memory; a row may be several blocks.
    // Lines that have to be made ready are so for a few rows together, because the outer ones are under two tasks.
    let fair = tiles.rows.div_ceil(rayon::current_num_threads());
    let at_least = if x.plain().is_some() { 1 } else { ROWS.min(fair) };
    let rows = (block / tiles.cols).max(at_least);
    // Moments of what is in the cache, where tiles of positions begin with rows of tiles.
    let measures = conv.moments && (M * ow).is_multiple_of(TILE);
    let mut rest = if measures { &mut *moments } else { &mut [] };
    let mut tasks = Vec::new();
    for (image, y) in y.chunks_mut(oh * ow * conv.co).enumerate() {
        for (i, y) in y.chunks_mut(M * rows * ow * conv.co).enumerate() {
            let len = if measures { (y.len() / conv.co).div_ceil(TILE) * 2 * conv.co } else { 0 };
            let (own, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            tasks.push((image, i * rows, y, own));
        }
    }
    let tasks = Mutex::new(tasks.into_iter());
    let len = block.min(rows * tiles.cols);
    // Places a power of two apart would share the same few sets of the cache.
    let (place_in, place_out) = (len * conv.ci + SKEW, len * conv.co + SKEW);
    // One scratch a thread for the whole call: as parts of a parallel iterator there would be one a piece.
    rayon::broadcast(|_| {
        let (mut input, mut output) = (vec![0.0; N * N * place_in], vec![0.0; N * N * place_out]);
        let (mut scratch, mut patch) = (Vec::new(), Vec::new());
        loop {
            let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((image, first_row, y, moments)) = task else { return };
            let inside = y.len() / (ow * conv.co);
            let count = inside.div_ceil(M) * tiles.cols;
            let x = ready::<N>(conv, x, image, (first_row, inside.div_ceil(M)), &mut scratch);
            let mut finished = 0;
            for first in (0..count).step_by(len) {
                let now = len.min(count - first);
                let from = first_row * tiles.cols + first;
                pulp::Arch::new().dispatch(Inputs::<N> {
                    conv,
                    x: &x,
                    tiles: from..from + now,
                    per_row: tiles.cols,
                    out: &mut input,
                    stride: place_in,
                    patch: &mut patch,
                });
                multiply_places::<N>(conv, w, (&input, place_in), (&mut output, place_out), now);
                pulp::Arch::new().dispatch(Outputs::<N, M> {
                    products: &output,
                    stride: place_out,
                    tiles: first..first + now,
                    per_row: tiles.cols,
                    y,
                    ow,
                    co: conv.co,
                });
                // Whole lines are finished while they are in the cache.
                let done = if first + now == count { inside } else { M * ((first + now) / tiles.cols) };
                let lines = &mut y[finished * ow * conv.co..done * ow * conv.co];
                wide(
                    #[inline(always)]
                    || epilogue.apply(lines, conv.co, (image * oh + M * first_row + finished) * ow),
                );
                if measures {
                    channel_moments::write_tiles(conv.co, lines, &mut moments[finished * ow / TILE * 2 * conv.co..]);
                }
                finished = done;
            }
        }
    });
    if conv.moments && !measures {
        channel_moments::write_all(conv.n, oh * ow, conv.co, y, moments);
    }
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

/// Lines of the input of an image, from `first` on.
struct Lines<'a> {
    first: usize,
    values: &'a [f32],
}

impl Lines<'_> {
    /// The pixels under a tile, line by line: where they lie if all are inside, else in `patch` with zeros around them.
    #[inline(always)]
    fn under<'a, const N: usize>(
        &'a self,
        conv: &Conv2d,
        (row, col): (usize, usize),
        patch: &'a mut [f32],
    ) -> [&'a [f32]; N] {
        // Tiles are `N - 2` pixels of the input apart; the first pixel is one before the tile's own.
        let (y, x) = (row * (N - 2), col * (N - 2));
        let at = |y: usize, x: usize| ((y - self.first) * conv.w + x) * conv.ci;
        let mut lines = [&[] as &[f32]; N];
        if y > 0 && x > 0 && y + N - 1 <= conv.h && x + N - 1 <= conv.w {
            for (i, line) in lines.iter_mut().enumerate() {
                *line = &self.values[at(y - 1 + i, x - 1)..][..N * conv.ci];
            }
            return lines;
        }
        patch.fill(0.0);
        let (left, right) = (1_usize.saturating_sub(x), N.min(conv.w + 1 - x));
        for i in 1_usize.saturating_sub(y)..N.min(conv.h + 1 - y) {
            let from = at(y + i - 1, x + left - 1);
            let inside = &self.values[from..][..(right - left) * conv.ci];
            patch[(i * N + left) * conv.ci..][..inside.len()].copy_from_slice(inside);
        }
        for (line, pixels) in lines.iter_mut().zip(patch.chunks_exact(N * conv.ci)) {
            *line = pixels;
        }
        lines
    }
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
    let step = N - 2;
    let first = (first_row * step).saturating_sub(1);
    let end = ((first_row + rows - 1) * step + N - 1).min(conv.h);
    scratch.resize((end - first) * conv.w * conv.ci, 0.0);
    x.make_ready((image * conv.h + first) * conv.w, scratch, Threads::One);
    Lines { first, values: scratch }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::conv2d::cases::plain;
    use crate::conv2d::direct::side_by_side;
    use crate::kernel::{Activation, Fill, Kernel, Tolerance};
    use crate::panels::Panels;

    #[test]
    fn every_block_gives_what_the_definition_gives() {
        for (upsample, h, w, ci, co) in [(1, 9, 13, 32, 80), (1, 8, 6, 32, 80), (2, 5, 7, 32, 80), (1, 9, 14, 64, 80)] {
            let n = 2;
            let conv = Conv2d {
                bias: true,
                shift: true,
                activation: Activation::Relu,
                residual: true,
                upsample,
                ..plain(n, h, w, ci, co)
            };
            let mut random = check::Random::new(1);
            let operands = conv.operands();
            let whole = operands.iter().take(5).map(|o| check::fill(o, Fill::Integers, &mut random));
            let [x, w, bias, shift, residual] =
                <[Vec<f32>; 5]>::try_from(whole.collect::<Vec<_>>()).expect("a convolution reads five operands");
            let (oh, ow) = conv.out_size();
            let epilogue = Epilogue {
                bias: &bias,
                shift: &shift,
                rows_per_image: oh * ow,
                activation: conv.activation,
                residual: &residual,
            };
            // Whole numbers stay exact on both ways, if they are not divided.
            let tolerance = if is_exact(&conv) { Tolerance::EXACT } else { conv.tolerance() };
            let mut want = vec![f32::NAN; n * oh * ow * co];
            let panels = Layout::Panels.pack(&[co, ci, 3, 3], w.clone());
            let w = layout(&conv).pack(&[co, ci, 3, 3], w);
            let x = conv.source.rows(n * h * conv.w, ci, &x, &[&[] as &[f32]; 5]);
            side_by_side(&conv, 16, &x, Panels::new(&panels, co, 9 * ci), &epilogue, &mut want);
            for block in [1, 3, 7, 20, 1000] {
                let mut y = vec![f32::NAN; want.len()];
                run(&conv, block, &x, &w, &epilogue, (&mut y, &mut []));
                let [y, want] = [&y, &want].map(|all| all.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
                let verdict = check::compare(&y, &want, &[n, oh, ow, co], tolerance);
                verdict.unwrap_or_else(|why| panic!("{conv:?} in blocks of {block}: {why}"));
            }
        }
    }
}
