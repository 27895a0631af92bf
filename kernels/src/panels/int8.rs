//! Panels of 8-bit weights: a quarter of the memory of floats.
//!
//! A panel stores one f32 scale per column, then its grains in the order of panels of floats, one byte per weight and
//! four weights per f32 word. `storage/int8.rs` defines the scale of a column and the rounding of a weight.
//!
//! Before a task multiplies its rows with a part of a panel, it widens that part to floats in thread-local memory. The
//! floats are exactly the values that the bytes stand for, so sums are bit for bit those of panels of the rounded
//! weights.

use super::{Aligned, PANEL, STEP, pack_panel};
use crate::cpu::with_simd;
use crate::storage::int8::{quantised, scale};
use rayon::prelude::*;
use std::cell::RefCell;
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

    /// Widens the weights at positions `part` of the panel's `depth` to floats, `[width / grain, part.len(), grain]`,
    /// and calls `take` with them.
    pub(super) fn widened(self, grain: usize, depth: usize, part: Range<usize>, take: impl FnOnce(&[f32])) {
        thread_local! {
            static FLOATS: RefCell<Aligned> = RefCell::default();
        }
        FLOATS.with_borrow_mut(|floats| {
            floats.grow_to(self.scales.len() * part.len());
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

#[cfg(test)]
mod tests {
    use crate::check::Random;
    use crate::cpu::Threads;
    use crate::panels::{self, Left, Panels, multiply};
    use crate::{DType, Storage, WeightType};

    #[test]
    fn products_equal_those_of_the_rounded_weights_bit_for_bit() {
        let mut random = Random::new(5);
        let mut normal = |len: usize| (0..len).map(|_| random.normal()).collect::<Vec<f32>>();
        // Columns around the sizes of panels and grains; `k` that are no multiple of four, and one that takes two
        // parts.
        for (rows, cols, k) in [(1, 1, 1), (7, 16, 3), (5, 63, 17), (13, 64, 15), (300, 177, 25), (9, 97, 1300)] {
            let (left, mut weights) = (normal(rows * k), normal(cols * k));
            // The last column is all zeros: its scale is zero.
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
