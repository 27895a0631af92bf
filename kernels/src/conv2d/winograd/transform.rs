//! The transforms of Winograd's algorithm, of all tiles of a block.

use super::lines::{input_line, output_line};
use super::{Conv2d, Lines};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// `B' d B` of tiles, every place `stride` from the one before.
pub(super) struct Inputs<'a, const N: usize> {
    pub(super) conv: &'a Conv2d,
    pub(super) x: &'a Lines<'a>,
    /// Counted from the first of the image, `per_row` in a row.
    pub(super) tiles: Range<usize>,
    pub(super) per_row: usize,
    /// `[N * N, tiles, ci]`, with a gap after every place.
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
    /// Memory for the pixels of a tile that is not all inside.
    pub(super) patch: &'a mut Vec<f32>,
}

impl<const N: usize> WithSimd for Inputs<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (ci, zero) = (self.conv.ci, simd.splat_f32s(0.0));
        self.patch.resize(N * N * ci, 0.0);
        for (index, tile) in self.tiles.enumerate() {
            let pixels = self.x.under::<N>(self.conv, (tile / self.per_row, tile % self.per_row), self.patch);
            for c in (0..ci).step_by(S::F32_LANES) {
                let mut lines = [[zero; N]; N];
                for (line, pixels) in lines.iter_mut().zip(pixels) {
                    for (j, value) in line.iter_mut().enumerate() {
                        *value = load::<S>(pixels, j * ci + c);
                    }
                    *line = input_line(simd, *line);
                }
                for j in 0..N {
                    for (i, value) in input_line(simd, column(&lines, j)).into_iter().enumerate() {
                        store::<S>(self.out, (i * N + j) * self.stride + index * ci + c, value);
                    }
                }
            }
        }
    }
}

/// `A' m A` of tiles: `M` rows of `M` pixels, or those that are there.
pub(super) struct Outputs<'a, const N: usize, const M: usize> {
    /// `[N * N, tiles, co]`, every place `stride` from the one before.
    pub(super) products: &'a [f32],
    pub(super) stride: usize,
    /// Counted from the first of `y`, `per_row` in a row.
    pub(super) tiles: Range<usize>,
    pub(super) per_row: usize,
    /// `[lines, ow, co]`
    pub(super) y: &'a mut [f32],
    pub(super) ow: usize,
    pub(super) co: usize,
}

impl<const N: usize, const M: usize> WithSimd for Outputs<'_, N, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (ow, co, zero) = (self.ow, self.co, simd.splat_f32s(0.0));
        let height = self.y.len() / (ow * co);
        for (index, tile) in self.tiles.enumerate() {
            let (top, left) = (M * (tile / self.per_row), M * (tile % self.per_row));
            for c in (0..co).step_by(S::F32_LANES) {
                let mut lines = [[zero; N]; N];
                for (i, line) in lines.iter_mut().enumerate() {
                    for (j, value) in line.iter_mut().enumerate() {
                        *value = load::<S>(self.products, (i * N + j) * self.stride + index * co + c);
                    }
                    *line = output_line(simd, *line);
                }
                for j in 0..M.min(ow - left) {
                    let pixels = output_line(simd, column(&lines, j)).into_iter().take(M.min(height - top));
                    for (i, value) in pixels.enumerate() {
                        store::<S>(self.y, ((top + i) * ow + left + j) * co + c, value);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn column<V: Copy, const N: usize>(lines: &[[V; N]; N], at: usize) -> [V; N] {
    let mut column = lines[0];
    for (value, line) in column.iter_mut().zip(lines) {
        *value = line[at];
    }
    column
}

#[inline(always)]
fn load<S: Simd>(from: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&from[at..at + S::F32_LANES]).0[0]
}

#[inline(always)]
fn store<S: Simd>(to: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut to[at..at + S::F32_LANES]).0[0] = value;
}
