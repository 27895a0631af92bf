//! Winograd's algorithm for 3x3 convolutions of stride 1 with one pixel of padding, on the CPU (Lavin and Gray,
//! arXiv 1509.09308).
//!
//! The output is computed in tiles of `M` by `M` pixels. The `D` by `D` input pixels under a tile are transformed to
//! `B^T d B`. The weights are transformed to `G g G^T`, `N` by `N` places, once when they are loaded. At each place all
//! tiles of a block are multiplied by the weights, `[tiles, ci] x [ci, co]`. The products are transformed to outputs by
//! `A^T m A`. Module `lines` derives the matrices.
//!
//! | form | used for | `D` | `N` | `M` | multiplications per output pixel and input channel |
//! |---|---|---|---|---|---|
//! | by definition | | | | | 9 |
//! | F(2x2, 3x3) | few channels | 4 | 4 | 2 | 4 |
//! | F(4x4, 3x3) | many channels | 6 | 6 | 4 | 2.25 |
//! | upsampled | `upsample` 2 | 4 | 5 | 4 | 1.5625 |
//!
//! The upsampled form reads the map before upsampling: 4 by 4 of its pixels are under a tile of 4 by 4 outputs.

mod form;
mod input;
mod lines;
mod transform;
mod weights;

pub use form::WinogradForm;
pub(crate) use weights::transformed_weights;

use super::{Conv2d, phases, write_moments};
use crate::channel_moments;
use crate::cpu::{Epilogue, with_simd};
use crate::panels::{self, Left, PANEL, ROWS};
use crate::prologue::Rows;
use crate::tile::TILE;
use input::{Lines, ready};
use lines::pixel_of;
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};
use transform::{Inputs, Outputs};

/// Gap in values between two places of a block. Places a power of two apart would share a few sets of the cache.
const SKEW: usize = 48;

/// Fewest rows of tiles of a task whose input has to be prepared, because neighbouring tasks prepare the lines between
/// them twice.
const FEWEST_ROWS: usize = 8;

/// Computes the convolution in blocks of about `block` tiles, and the moments of the output if the convolution has
/// them.
///
/// The result has the same bits for every `block` and number of threads.
pub(super) fn run(
    form: WinogradForm,
    conv: &Conv2d,
    block: usize,
    x: &Rows<'_>,
    w: &[f32],
    epilogue: &Epilogue<'_>,
    y: (&mut [f32], &mut [f32]),
) {
    match form {
        WinogradForm::Small => run_with::<4, 4, 2>(conv, block, x, w, epilogue, y),
        WinogradForm::Large => run_with::<6, 6, 4>(conv, block, x, w, epilogue, y),
        WinogradForm::Upsampled => run_with::<4, 5, 4>(conv, block, x, w, epilogue, y),
    }
}

/// Returns the most tiles of a block. Few tiles keep a block's transformed input and output and the weights of a place
/// in a core's share of the cache. Many tiles read the weights less often, since every block reads all of them.
pub(super) fn block(form: WinogradForm, conv: &Conv2d) -> usize {
    // Processors without vectors of 16 have smaller caches, too: 512 KiB a core on AMD's Zen 3, where this was
    // measured.
    let (values, fewest) = if panels::grain(PANEL) == PANEL { (1 << 19, 96) } else { (1 << 18, 48) };
    // Weights of this size leave the cache between two blocks in any case, so that larger blocks are better.
    const LARGE: usize = 1 << 17;
    let (pixels, places) = (form.pixels(), form.places());
    let tiles = values / (pixels * pixels * conv.ci + places * places * conv.co);
    let tiles = if conv.ci * conv.co > LARGE { 256 } else { tiles.max(fewest) };
    tiles.min(Tiles::of(conv, form.outputs()).count().div_ceil(rayon::current_num_threads())).max(1)
}

/// Grid of tiles.
#[derive(Clone, Copy)]
struct Tiles {
    /// Number of images.
    images: usize,
    /// Rows of tiles in an image.
    rows: usize,
    /// Tiles in a row.
    cols: usize,
}

impl Tiles {
    /// Returns the grid of tiles of `edge` by `edge` outputs that covers the output of the convolution.
    fn of(conv: &Conv2d, edge: usize) -> Self {
        let (oh, ow) = conv.out_size();
        Self { images: conv.n, rows: oh.div_ceil(edge), cols: ow.div_ceil(edge) }
    }

    /// Returns the number of tiles of all images.
    fn count(self) -> usize {
        self.images * self.rows * self.cols
    }

    /// Returns the number of tasks for each image: a task has about `rows` rows of tiles, and the tasks of all images
    /// come out even between `threads` threads where there are enough rows.
    fn tasks(self, rows: usize, threads: usize) -> usize {
        let all = self.images * self.rows.div_ceil(rows);
        all.next_multiple_of(threads).div_ceil(self.images.max(1)).min(self.rows)
    }
}

/// Some whole rows of tiles of an image, whose output is contiguous.
struct Task<'a> {
    /// Index of the image.
    image: usize,
    /// Index of the first row of tiles in the image.
    first: usize,
    /// Output lines of the rows.
    y: &'a mut [f32],
    /// Moments of the output, or empty if this task does not write them.
    moments: &'a mut [f32],
}

/// Returns the tasks of a convolution with tiles of `M` by `M` outputs: `per_image` for each image, which differ by one
/// row of tiles at most. If `moments` is not empty, `M` output lines are a multiple of [`TILE`] pixels.
fn tasks<'a, const M: usize>(
    conv: &Conv2d,
    per_image: usize,
    y: &'a mut [f32],
    mut moments: &'a mut [f32],
) -> impl Iterator<Item = Task<'a>> {
    let (oh, ow) = conv.out_size();
    let (co, rows) = (conv.co, Tiles::of(conv, M).rows);
    let mut tasks = Vec::with_capacity(conv.n * per_image);
    for (image, mut y) in y.chunks_mut(oh * ow * co).enumerate() {
        for i in 0..per_image {
            let (first, end) = (i * rows / per_image, (i + 1) * rows / per_image);
            let lines = oh.min(M * end) - M * first;
            let (own_y, others) = std::mem::take(&mut y).split_at_mut(lines * ow * co);
            y = others;
            let len = if moments.is_empty() { 0 } else { (lines * ow).div_ceil(TILE) * 2 * co };
            let (own_moments, others) = std::mem::take(&mut moments).split_at_mut(len);
            moments = others;
            tasks.push(Task { image, first, y: own_y, moments: own_moments });
        }
    }
    tasks.into_iter()
}

/// Scratch memory of one thread, allocated once per convolution. State of a parallel iterator would be allocated for
/// each of its pieces.
#[derive(Default)]
struct Scratch {
    /// Transformed pixels of a block.
    input: Vec<f32>,
    /// Products of a block.
    output: Vec<f32>,
    /// Prepared input lines of a task.
    lines: Vec<f32>,
    /// Pixels under a tile that reaches beyond the image.
    patch: Vec<f32>,
}

/// Data that all tasks share.
struct Job<'a> {
    conv: &'a Conv2d,
    /// Most tiles of a block.
    block: usize,
    /// Tiles in a row.
    cols: usize,
    x: &'a Rows<'a>,
    w: &'a [f32],
    epilogue: &'a Epilogue<'a>,
}

/// Implements [`run`] for one form.
fn run_with<const D: usize, const N: usize, const M: usize>(
    conv: &Conv2d,
    block: usize,
    x: &Rows<'_>,
    w: &[f32],
    epilogue: &Epilogue<'_>,
    (y, moments): (&mut [f32], &mut [f32]),
) {
    let (_, ow) = conv.out_size();
    let (tiles, threads) = (Tiles::of(conv, M), rayon::current_num_threads());
    let at_least = if x.are_plain() { 1 } else { FEWEST_ROWS.min(tiles.rows.div_ceil(threads)) };
    let per_image = tiles.tasks((block / tiles.cols).max(at_least), threads);
    // A task measures its output while that is in the cache, provided that rows of tiles begin at tiles of moments.
    let phases = if phases::suits(conv) { phases::PHASES } else { 1 };
    let measures = conv.moments && (M * ow).is_multiple_of(phases * TILE);
    let tasks = Mutex::new(tasks::<M>(conv, per_image, y, if measures { &mut *moments } else { &mut [] }));
    let job =
        Job { conv, block: block.min(tiles.rows.div_ceil(per_image) * tiles.cols), cols: tiles.cols, x, w, epilogue };
    // One loop per thread, none of which is bound to a thread: a thread may be busy with a task of another caller.
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        let mut scratch = Scratch::default();
        loop {
            let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(task) = task else { return };
            job.run::<D, N, M>(task, &mut scratch);
        }
    });
    drop(tasks);
    if conv.moments && !measures {
        write_moments(conv, y, moments);
    }
}

impl Job<'_> {
    /// Runs a task block by block.
    fn run<const D: usize, const N: usize, const M: usize>(&self, task: Task<'_>, scratch: &mut Scratch) {
        let (conv, per_row) = (self.conv, self.cols);
        let (oh, ow) = conv.out_size();
        let line = ow * conv.co;
        let (place_in, place_out) = (self.block * conv.ci + SKEW, self.block * conv.co + SKEW);
        scratch.input.resize(D * D * place_in, 0.0);
        scratch.output.resize(N * N * place_out, 0.0);
        let inside = task.y.len() / line;
        let count = inside.div_ceil(M) * per_row;
        // Blocks of equal size, in whole tiles of the product's rows.
        let block = count.div_ceil(count.div_ceil(self.block)).next_multiple_of(ROWS).min(self.block);
        let x = &ready::<D>(conv, self.x, task.image, (task.first, inside.div_ceil(M)), &mut scratch.lines);
        let mut finished = 0;
        for first in (0..count).step_by(block) {
            let tiles = first..(first + block).min(count);
            let within = task.first * per_row + tiles.start..task.first * per_row + tiles.end;
            let (out, patch) = (&mut scratch.input, &mut scratch.patch);
            pulp::Arch::new().dispatch(Inputs::<D> { conv, x, tiles: within, per_row, out, stride: place_in, patch });
            let products = &mut scratch.output;
            multiply_places::<D, N>(conv, self.w, (&scratch.input, place_in), (products, place_out), tiles.len());
            // The epilogue takes complete lines, while they are in the cache.
            let done = if tiles.end == count { inside } else { M * (tiles.end / per_row) };
            let (y, stride, co) = (&mut *task.y, place_out, conv.co);
            pulp::Arch::new().dispatch(Outputs::<N, M> { products, stride, tiles, per_row, y, ow, co });
            let lines = &mut task.y[finished * line..done * line];
            let row = (task.image * oh + M * task.first + finished) * ow;
            with_simd(
                #[inline(always)]
                || self.epilogue.at_row(row).apply(lines, co),
            );
            if !task.moments.is_empty() {
                let moments = &mut task.moments[finished * ow / TILE * 2 * co..];
                if phases::suits(conv) {
                    phases::write_moments(conv, lines, moments);
                } else {
                    channel_moments::write_tiles(co, lines, moments);
                }
            }
            finished = done;
        }
    }
}

/// Computes the products of all places for `rows` tiles. Places are `place_in` values apart in `input` and `place_out`
/// in `output`.
fn multiply_places<const D: usize, const N: usize>(
    conv: &Conv2d,
    w: &[f32],
    (input, place_in): (&[f32], usize),
    (output, place_out): (&mut [f32], usize),
    rows: usize,
) {
    for place in 0..N * N {
        let pixel = pixel_of::<D, N>(place / N) * D + pixel_of::<D, N>(place % N);
        let input = Left::new(&input[pixel * place_in..], rows, conv.ci);
        let output = &mut output[place * place_out..][..rows * conv.co];
        for first in (0..conv.co).step_by(PANEL) {
            let width = PANEL.min(conv.co - first);
            let values = &w[(first * N * N + place * width) * conv.ci..][..width * conv.ci];
            panels::multiply_part(output, conv.co, first, input, (values, width, conv.ci));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::conv2d::cases::plain;
    use crate::conv2d::direct::side_by_side;
    use crate::kernel::{Activation, Fill, Kernel, Layout, Tolerance};
    use crate::panels::Panels;
    use crate::prologue::{Norm, Prologue, PrologueInputs};
    use crate::random::Random;

    #[test]
    fn every_block_gives_what_the_definition_gives() {
        let sizes = [(1, 9, 13, 32, 80), (1, 8, 6, 32, 80), (2, 5, 7, 32, 80), (1, 9, 14, 64, 80)];
        // With moments that a task can take, and such that it cannot.
        let measured = [
            (1, 8, 32, 32, 80),
            (2, 4, 16, 32, 80),
            (2, 4, 32, 32, 80),
            (2, 6, 32, 32, 80),
            (1, 12, 16, 64, 80),
            (1, 16, 12, 64, 80),
        ];
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
            let mut random = Random::new(1);
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
                first_row: 0,
            };
            // Whole numbers stay exact on both ways, if they are not divided.
            let form = WinogradForm::of(&conv).expect("it suits");
            let tolerance = if form.is_exact() { Tolerance::EXACT } else { conv.tolerance() };
            let mut want = vec![f32::NAN; n * oh * ow * co];
            let panels = Layout::panels(1).pack(&[co, ci, 3, 3], w.clone());
            let w = Layout::Winograd(form).pack(&[co, ci, 3, 3], w);
            let inputs = PrologueInputs { x: &x, norm: &scale, ..Default::default() };
            let x = conv.prologue.rows(n * h * conv.w, ci, inputs);
            side_by_side(&conv, 16, &x, Panels::new(&panels, co, 9 * ci), &epilogue, &mut want);
            let moments_len = if moments { conv.operands().last().expect("it writes them").host_len() } else { 0 };
            for block in [1, 3, 7, 20, 1000] {
                let mut y = vec![f32::NAN; want.len()];
                let [mut got, mut of_y] = [(); 2].map(|()| vec![f32::NAN; moments_len]);
                run(form, &conv, block, &x, &w, &epilogue, (&mut y, &mut got));
                if moments {
                    write_moments(&conv, &y, &mut of_y);
                    assert_eq!(got, of_y, "{conv:?} in blocks of {block}: moments");
                }
                let [y, want] = [&y, &want].map(|all| all.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
                let verdict = check::compare(&y, &want, &[n, oh, ow, co], tolerance);
                verdict.unwrap_or_else(|why| panic!("{conv:?} in blocks of {block}: {why}"));
            }
        }
    }
}
