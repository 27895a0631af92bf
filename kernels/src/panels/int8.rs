//! Panels of 8-bit weights: a quarter of the memory of floats.
//!
//! A panel stores one f32 scale per column, then its grains in the order of panels of floats, one byte per weight and
//! four weights per f32 word. `storage/int8.rs` defines the scale of a column and the rounding of a weight.
//!
//! Before a task multiplies its rows with a part of a panel, it widens that part to floats in thread-local memory. The
//! floats are exactly the values that the bytes stand for, so sums are bit for bit those of panels of the rounded
//! weights.

use super::{PANEL, STEP, pack_panel};
use crate::cpu::with_simd;
use crate::storage::int8::{quantised, scale};
use rayon::prelude::*;
use std::ops::Range;

/// Returns the number of f32 words that `cols` columns of `k` weights occupy as panels of bytes.
pub(crate) fn packed_len(cols: usize, k: usize) -> usize {
    let cols = cols.next_multiple_of(STEP);
    cols + cols * k / 4
}

/// Quantises a row-major matrix `[cols, k]` and packs it into panels of bytes, on all threads.
pub(crate) fn pack_matrix(cols: usize, k: usize, data: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; packed_len(cols, k)];
    let panels = out.par_chunks_mut(packed_len(PANEL, k)).zip(data.par_chunks((PANEL * k).max(1)));
    panels.for_each(|(panel, columns)| {
        let there = columns.len() / k;
        let (scales, weights) = panel.split_at_mut(there.next_multiple_of(STEP));
        scales.iter_mut().zip(columns.chunks_exact(k)).for_each(|(to, column)| *to = scale(column));
        pack_panel(bytemuck::cast_slice_mut(weights), 0, there, k, |col, at, out: &mut [u8]| {
            // A scale of zero means that all weights of the column are zero.
            if scales[col] != 0.0 {
                out.iter_mut().zip(&columns[col * k + at..]).for_each(|(to, w)| *to = quantised(*w, scales[col]));
            }
        });
    });
    out
}

/// One panel of 8-bit weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Int8<'a> {
    /// `[width]`
    scales: &'a [f32],
    /// `[width / grain, depth, grain]`
    weights: &'a [i8],
}

impl<'a> Int8<'a> {
    /// Splits the words of a panel of `width` columns into scales and weights.
    pub(super) fn new(words: &'a [f32], width: usize) -> Self {
        let (scales, weights) = words.split_at(width);
        Self { scales, weights: bytemuck::cast_slice(weights) }
    }

    /// Returns the number of weights.
    pub(super) fn len(self) -> usize {
        self.weights.len()
    }

    /// Widens the weights `part` of every grain, of `grain` weights in all, to floats in `grains`.
    pub(super) fn widen<'f>(self, grains: impl Iterator<Item = &'f mut [f32]>, grain: usize, part: Range<usize>) {
        let cols = self.scales.len() * grain / self.weights.len();
        let each = self.scales.chunks_exact(cols).zip(self.weights.chunks_exact(grain));
        with_simd(
            #[inline(always)]
            || {
                for (to, (scales, weights)) in grains.zip(each) {
                    for (to, weights) in to.chunks_exact_mut(cols).zip(weights[part.clone()].chunks_exact(cols)) {
                        line(to, scales, weights);
                    }
                }
            },
        );
    }
}

/// Widens one line of a grain: the weights of all its columns at one position of `k`.
#[inline(always)]
fn line(to: &mut [f32], scales: &[f32], weights: &[i8]) {
    // Pieces of a constant length, so that the compiler vectorises the loop over them.
    let pieces = scales.as_chunks::<STEP>().0.iter().zip(weights.as_chunks::<STEP>().0);
    for (to, (scales, weights)) in to.as_chunks_mut::<STEP>().0.iter_mut().zip(pieces) {
        // All values are read before any is written: compilers vectorise this form.
        let mut values = [0.0; STEP];
        for i in 0..STEP {
            values[i] = scales[i] * f32::from(weights[i]);
        }
        *to = values;
    }
}
