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
use crate::cpu::{Epilogue, Threads, with_simd};
use crate::kernel::Layout;
use crate::panels::{self, Left, PANEL, STEP};
use crate::prologue::Rows;
use crate::tile::TILE;
use rayon::prelude::*;
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

/// How the weights lie in memory, if this way suits the problem.
pub(super) fn layout(conv: &Conv2d) -> Option<Layout> {
    suits(conv).then(|| Layout::Winograd(edge(conv)))
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

/// Whole rows of tiles, since their output is one piece of memory.
struct Task<'a> {
    image: usize,
    /// The first row of tiles.
    first: usize,
    y: &'a mut [f32],
    /// Empty if they are not wanted, or do not begin with a row of tiles.
    moments: &'a mut [f32],
}

/// `rows` rows of tiles each.
fn tasks<'a, const M: usize>(
    conv: &Conv2d,
    rows: usize,
    y: &'a mut [f32],
    mut moments: &'a mut [f32],
) -> impl Iterator<Item = Task<'a>> {
    let (oh, ow) = conv.out_size();
    let co = conv.co;
    let mut tasks = Vec::new();
    for (image, y) in y.chunks_mut(oh * ow * co).enumerate() {
        for (i, y) in y.chunks_mut(M * rows * ow * co).enumerate() {
            let len = if moments.is_empty() { 0 } else { (y.len() / co).div_ceil(TILE) * 2 * co };
            let (own, others) = std::mem::take(&mut moments).split_at_mut(len);
            moments = others;
            tasks.push(Task { image, first: i * rows, y, moments: own });
        }
    }
    tasks.into_iter()
}

/// What a thread works in, once for the whole call: as parts of a parallel iterator there would be one a piece.
#[derive(Default)]
struct Scratch {
    input: Vec<f32>,
    output: Vec<f32>,
    lines: Vec<f32>,
    patch: Vec<f32>,
}

/// What all tasks have in common.
struct Job<'a> {
    conv: &'a Conv2d,
    /// Tiles of a block.
    block: usize,
    /// Tiles in a row.
    cols: usize,
    x: &'a Rows<'a>,
    w: &'a [f32],
    epilogue: &'a Epilogue<'a>,
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
    // Lines that have to be made ready are so for a few rows together, because the outer ones are under two tasks.
    let fair = tiles.rows.div_ceil(rayon::current_num_threads());
    let at_least = if x.plain().is_some() { 1 } else { ROWS.min(fair) };
    let rows = (block / tiles.cols).max(at_least);
    // Moments of what is in the cache, where tiles of positions begin with rows of tiles.
    let measures = conv.moments && (M * ow).is_multiple_of(TILE);
    let tasks = Mutex::new(tasks::<M>(conv, rows, y, if measures { &mut *moments } else { &mut [] }));
    let job = Job { conv, block: block.min(rows * tiles.cols), cols: tiles.cols, x, w, epilogue };
    // One for each thread, but for no thread in particular: one of them may be at somebody else's task.
    (0..rayon::current_num_threads()).into_par_iter().with_max_len(1).for_each(|_| {
        let mut scratch = Scratch::default();
        loop {
            let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(task) = task else { return };
            job.run::<N, M>(task, &mut scratch);
        }
    });
    drop(tasks);
    if conv.moments && !measures {
        channel_moments::write_all(conv.n, oh * ow, conv.co, y, moments);
    }
}

impl Job<'_> {
    /// A task, block by block.
    fn run<const N: usize, const M: usize>(&self, task: Task<'_>, scratch: &mut Scratch) {
        let (conv, per_row) = (self.conv, self.cols);
        let (oh, ow) = conv.out_size();
        let line = ow * conv.co;
        // Places a power of two apart would share the same few sets of the cache.
        let (place_in, place_out) = (self.block * conv.ci + SKEW, self.block * conv.co + SKEW);
        scratch.input.resize(N * N * place_in, 0.0);
        scratch.output.resize(N * N * place_out, 0.0);
        let inside = task.y.len() / line;
        let count = inside.div_ceil(M) * per_row;
        let x = &ready::<N>(conv, self.x, task.image, (task.first, inside.div_ceil(M)), &mut scratch.lines);
        let mut finished = 0;
        for first in (0..count).step_by(self.block) {
            let tiles = first..(first + self.block).min(count);
            let within = task.first * per_row + tiles.start..task.first * per_row + tiles.end;
            let (out, patch) = (&mut scratch.input, &mut scratch.patch);
            pulp::Arch::new().dispatch(Inputs::<N> { conv, x, tiles: within, per_row, out, stride: place_in, patch });
            let products = &mut scratch.output;
            multiply_places::<N>(conv, self.w, (&scratch.input, place_in), (products, place_out), tiles.len());
            // Whole lines are finished while they are in the cache.
            let done = if tiles.end == count { inside } else { M * (tiles.end / per_row) };
            let (y, stride, co) = (&mut *task.y, place_out, conv.co);
            pulp::Arch::new().dispatch(Outputs::<N, M> { products, stride, tiles, per_row, y, ow, co });
            let lines = &mut task.y[finished * line..done * line];
            let row = (task.image * oh + M * task.first + finished) * ow;
            with_simd(
                #[inline(always)]
                || self.epilogue.apply(lines, co, row),
            );
            if !task.moments.is_empty() {
                channel_moments::write_tiles(co, lines, &mut task.moments[finished * ow / TILE * 2 * co..]);
            }
            finished = done;
        }
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
    use crate::prologue::{Norm, Prologue};

    #[test]
    fn every_block_gives_what_the_definition_gives() {
        let sizes = [(1, 9, 13, 32, 80), (1, 8, 6, 32, 80), (2, 5, 7, 32, 80), (1, 9, 14, 64, 80)];
        // With moments that a task can take, and such that it cannot.
        let measured = [(1, 8, 32, 32, 80), (2, 4, 16, 32, 80), (1, 12, 16, 64, 80), (1, 16, 12, 64, 80)];
        for (upsample, h, w, ci, co) in sizes.into_iter().chain(measured) {
            let n = 2;
            let moments = channel_moments::tiles_fit(n, h * w * upsample * upsample);
            // Lines that have to be made ready are so for several blocks.
            let norm = if moments { Norm::Channels { images: n, activation: Activation::Relu } } else { Norm::None };
            let conv = Conv2d {
                moments,
                prologue: Prologue { norm, ..Prologue::default() },
                bias: true,
                shift: true,
                activation: Activation::Relu,
                residual: true,
                upsample,
                ..plain(n, h, w, ci, co)
            };
            let mut random = check::Random::new(1);
            let operands = conv.operands();
            let whole = operands.iter().take(7).map(|o| check::fill(o, Fill::Integers, &mut random));
            let [x, w, bias, shift, residual, _, scale] =
                <[Vec<f32>; 7]>::try_from(whole.collect::<Vec<_>>()).expect("a convolution reads seven operands");
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
            let w = layout(&conv).expect("it suits").pack(&[co, ci, 3, 3], w);
            let x = conv.prologue.rows(n * h * conv.w, ci, &x, &[&[], &[], &[], &[], &scale]);
            side_by_side(&conv, 16, &x, Panels::new(&panels, co, 9 * ci), &epilogue, &mut want);
            let moments_len = if moments { conv.operands().last().expect("it writes them").host_len() } else { 0 };
            for block in [1, 3, 7, 20, 1000] {
                let mut y = vec![f32::NAN; want.len()];
                let [mut got, mut of_y] = [(); 2].map(|()| vec![f32::NAN; moments_len]);
                run(&conv, block, &x, &w, &epilogue, (&mut y, &mut got));
                if moments {
                    channel_moments::write_all(n, oh * ow, co, &y, &mut of_y);
                    assert_eq!(got, of_y, "{conv:?} in blocks of {block}: moments");
                }
                let [y, want] = [&y, &want].map(|all| all.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
                let verdict = check::compare(&y, &want, &[n, oh, ow, co], tolerance);
                verdict.unwrap_or_else(|why| panic!("{conv:?} in blocks of {block}: {why}"));
            }
        }
    }
}
