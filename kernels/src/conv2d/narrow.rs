//! The CPU form of 3x3 convolutions to few channels, which gathers no patches.
//!
//! One matrix product per input line, `[w, ci] x [ci, 9 * co]`, gives the contributions of every pixel to the nine
//! output pixels around it: its *pieces*. An output line is the sum of the pieces of three input lines.
//!
//! A matrix of patches would be nine times as large as the input, multiplied by as many columns as a vector has lanes.
//! The pieces are `9 * co` values per pixel, so this form suits convolutions to few channels only.

use super::Conv2d;
use crate::cpu::{Epilogue, Threads, with_simd};
use crate::panels::{Left, Panels, STEP, multiply};
use crate::prologue::Rows;
use rayon::prelude::*;

/// Largest number of output lines of a task. A task computes the pieces of two input lines more.
const LINES: usize = 64;

/// Returns whether this form suits the problem. The size of the picture does not matter, so that weights are packed in
/// one way.
pub(super) fn suits(conv: &Conv2d) -> bool {
    (conv.kernel, conv.stride, conv.upsample) == (3, 1, 1) && conv.co < STEP
}

/// Computes the convolution, except for its moments.
pub(super) fn run(conv: &Conv2d, x: &Rows<'_>, w: &[f32], epilogue: &Epilogue<'_>, y: &mut [f32]) {
    let w = Panels::floats(w, 9 * conv.co, conv.ci);
    let (oh, ow) = conv.out_size();
    let lines = oh.div_ceil(4 * rayon::current_num_threads()).min(LINES);
    y.par_chunks_mut(oh * ow * conv.co).enumerate().for_each(|(image, y)| {
        let tasks = y.par_chunks_mut(lines * ow * conv.co).enumerate();
        tasks.for_each_init(Pieces::default, |pieces, (task, y)| {
            pieces.next = None;
            for (i, y) in y.chunks_exact_mut(ow * conv.co).enumerate() {
                let oy = task * lines + i;
                pieces.make(conv, x, w, image, oy);
                with_simd(
                    #[inline(always)]
                    || {
                        pieces.add_up(conv, oy, y);
                        epilogue.at_row((image * oh + oy) * ow).apply(y, conv.co);
                    },
                );
            }
        });
    });
}

/// The pieces of the last three input lines.
#[derive(Default)]
struct Pieces {
    /// `[3, w, 3, 3, co]`. Line `y` of the image is at index `y % 3`.
    values: Vec<f32>,
    /// Scratch memory for an input line that the prologue changes.
    ready: Vec<f32>,
    /// First input line whose pieces are not computed yet; `None` at the beginning of a task.
    next: Option<usize>,
}

impl Pieces {
    /// Computes the pieces of the input lines under output line `oy`, except for those that are there already.
    fn make(&mut self, conv: &Conv2d, x: &Rows<'_>, w: Panels<'_>, image: usize, oy: usize) {
        let len = conv.w * 9 * conv.co;
        self.values.resize(3 * len, 0.0);
        for iy in (0..3).filter_map(|ky| conv.input_at(oy, ky, conv.h)) {
            if self.next.is_some_and(|next| iy < next) {
                continue;
            }
            let first = (image * conv.h + iy) * conv.w;
            let line = x.ready(first..first + conv.w, &mut self.ready, Threads::One);
            let pieces = &mut self.values[iy % 3 * len..][..len];
            multiply(pieces, Left::new(line, conv.w, conv.ci), w, None, Threads::One);
            self.next = Some(iy + 1);
        }
    }

    /// Adds the pieces of output line `oy` up in `y`, `[ow, co]`.
    #[inline(always)]
    fn add_up(&self, conv: &Conv2d, oy: usize, y: &mut [f32]) {
        let (co, len) = (conv.co, self.values.len() / 3);
        y.fill(0.0);
        for ky in 0..3 {
            let Some(iy) = conv.input_at(oy, ky, conv.h) else { continue };
            let line = &self.values[iy % 3 * len..][..len];
            for kx in 0..3 {
                let outputs = y.chunks_exact_mut(co).skip(conv.pad_start.saturating_sub(kx));
                let inputs = line.chunks_exact(9 * co).skip(kx.saturating_sub(conv.pad_start));
                for (y, pixel) in outputs.zip(inputs) {
                    y.iter_mut().zip(&pixel[(3 * ky + kx) * co..]).for_each(|(y, piece)| *y += piece);
                }
            }
        }
    }
}
