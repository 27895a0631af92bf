//! Panels of weights in 8 bits: the scales of its columns, one f32 each, then its grains as those of floats lie, four weights
//! to a word. What a scale is, and a weight by it: `storage/int8.rs`.
//!
//! A product makes floats of a part of a panel before the rows of a task pass by, in memory of the thread's own. They are
//! the values that the weights stand for, so the sums are bit for bit those of floats.

use super::{Aligned, PANEL, STEP, pack_panel};
use crate::cpu::with_simd;
use crate::storage::int8::{quantised, scale};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Words of `cols` columns of `k` weights.
pub(crate) fn packed_len(cols: usize, k: usize) -> usize {
    let cols = cols.next_multiple_of(STEP);
    cols + cols * k / 4
}

/// `[cols, k]`, row by row, as panels.
pub(crate) fn pack_matrix(cols: usize, k: usize, data: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; packed_len(cols, k)];
    let panels = out.par_chunks_mut(packed_len(PANEL, k)).zip(data.par_chunks((PANEL * k).max(1)));
    panels.for_each(|(panel, columns)| {
        let there = columns.len() / k;
        let (scales, weights) = panel.split_at_mut(there.next_multiple_of(STEP));
        scales.iter_mut().zip(columns.chunks_exact(k)).for_each(|(to, column)| *to = scale(column));
        pack_panel(bytemuck::cast_slice_mut(weights), 0, there, k, |col, at, out: &mut [u8]| {
            // Where the scale is zero all weights are.
            if scales[col] != 0.0 {
                out.iter_mut().zip(&columns[col * k + at..]).for_each(|(to, w)| *to = quantised(*w, scales[col]));
            }
        });
    });
    out
}

/// A panel as it lies: its scales and `[width / grain, depth, grain]` weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Int8<'a> {
    scales: &'a [f32],
    weights: &'a [i8],
}

impl<'a> Int8<'a> {
    /// The words of a panel of `width`.
    pub(super) fn new(words: &'a [f32], width: usize) -> Self {
        let (scales, weights) = words.split_at(width);
        Self { scales, weights: bytemuck::cast_slice(weights) }
    }

    /// Hands over the floats that `part` of its `depth` stands for: `[width / grain, part, grain]`.
    pub(super) fn widened(self, grain: usize, depth: usize, part: Range<usize>, take: impl FnOnce(&[f32])) {
        thread_local! {
            static FLOATS: RefCell<Aligned> = RefCell::default();
        }
        FLOATS.with_borrow_mut(|floats| {
            floats.make_room(self.scales.len() * part.len());
            let floats = &mut floats[..self.scales.len() * part.len()];
            let grains = self.scales.chunks_exact(grain).zip(self.weights.chunks_exact(grain * depth));
            with_simd(
                #[inline(always)]
                || {
                    for (to, (scales, weights)) in floats.chunks_exact_mut(grain * part.len()).zip(grains) {
                        let weights = &weights[grain * part.start..grain * part.end];
                        for (to, weights) in to.chunks_exact_mut(grain).zip(weights.chunks_exact(grain)) {
                            line(to, scales, weights);
                        }
                    }
                },
            );
            take(floats);
        });
    }
}

/// A line of a grain, in pieces of a length that the compiler knows.
#[inline(always)]
fn line(to: &mut [f32], scales: &[f32], weights: &[i8]) {
    let pieces = scales.as_chunks::<STEP>().0.iter().zip(weights.as_chunks::<STEP>().0);
    for (to, (scales, weights)) in to.as_chunks_mut::<STEP>().0.iter_mut().zip(pieces) {
        // All is read before any of it is written, which compilers make vectors of.
        let mut values = [0.0; STEP];
        for i in 0..STEP {
            values[i] = scales[i] * f32::from(weights[i]);
        }
        *to = values;
    }
}

#[cfg(test)]
mod tests {
    use crate::check::Random;
    use crate::cpu::Threads;
    use crate::panels::{self, Left, Panels, multiply};
    use crate::{DType, Storage, WeightType};

    #[test]
    fn products_are_bit_for_bit_those_of_the_floats_that_are_left() {
        let mut random = Random::new(5);
        let mut normal = |len: usize| (0..len).map(|_| random.normal()).collect::<Vec<f32>>();
        // Columns about panels and grains; `k` that is no multiple of four, and of two parts.
        for (rows, cols, k) in [(1, 1, 1), (7, 16, 3), (5, 63, 17), (13, 64, 15), (300, 177, 25), (9, 97, 1300)] {
            let (left, mut weights) = (normal(rows * k), normal(cols * k));
            // A column without a scale.
            weights[(cols - 1) * k..].fill(0.0);
            let left = Left::new(&left, rows, k);
            let product = |packed: &[f32]| {
                let mut y = vec![f32::NAN; rows * cols];
                multiply(&mut y, left, Panels::new(packed, cols, k), None, Threads::All);
                y
            };
            let got = product(&super::pack_matrix(cols, k, &weights));
            let rounded = Storage::F32.with_weights(WeightType::Int8).rounded(DType::Weight, &[cols, k], weights);
            assert_eq!(got, product(&panels::pack_matrix(cols, k, &rounded)), "{rows}x{k} by {k}x{cols}");
        }
    }
}
