//! Winograd's transforms of all tiles of a block, vectorised over channels.

use super::lines::{input_line, output_line};
use super::{Conv2d, Lines};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Task that transforms the input pixels of some tiles: `B^T d B`, `D` by `D` pixels per tile.
pub(super) struct Inputs<'a, const D: usize> {
    pub(super) conv: &'a Conv2d,
    pub(super) x: &'a Lines<'a>,
    /// Tiles to transform, counted from the first tile of the image.
    pub(super) tiles: Range<usize>,
    /// Number of tiles in a row of tiles.
    pub(super) per_row: usize,
    /// Result `[D * D, tiles, ci]`, whose outermost steps are `stride` values apart.
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
    /// Scratch memory for the pixels of a tile that reaches beyond the image.
    pub(super) patch: &'a mut Vec<f32>,
}

impl<const D: usize> WithSimd for Inputs<'_, D> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (ci, zero) = (self.conv.ci, simd.splat_f32s(0.0));
        self.patch.resize(D * D * ci, 0.0);
        for (index, tile) in self.tiles.enumerate() {
            let pixels = self.x.under::<D>(self.conv, (tile / self.per_row, tile % self.per_row), self.patch);
            for c in (0..ci).step_by(S::F32_LANES) {
                let mut lines = [[zero; D]; D];
                for (line, pixels) in lines.iter_mut().zip(pixels) {
                    for (j, value) in line.iter_mut().enumerate() {
                        *value = load::<S>(pixels, j * ci + c);
                    }
                    *line = input_line(simd, *line);
                }
                for j in 0..D {
                    for (i, value) in input_line(simd, column(&lines, j)).into_iter().enumerate() {
                        store::<S>(self.out, (i * D + j) * self.stride + index * ci + c, value);
                    }
                }
            }
        }
    }
}

/// Task that transforms the products of some tiles to outputs: `A^T m A`, `M` by `M` pixels per tile.
///
/// Pixels of a tile beyond the right or lower edge of the image are not written.
pub(super) struct Outputs<'a, const N: usize, const M: usize> {
    /// Products `[N * N, tiles, co]`, whose outermost steps are `stride` values apart.
    pub(super) products: &'a [f32],
    pub(super) stride: usize,
    /// Tiles to transform, counted from the first tile of `y`.
    pub(super) tiles: Range<usize>,
    /// Number of tiles in a row of tiles.
    pub(super) per_row: usize,
    /// Output lines `[lines, ow, co]`.
    pub(super) y: &'a mut [f32],
    /// Width of the output in pixels.
    pub(super) ow: usize,
    /// Number of output channels.
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

/// Returns column `at` of a tile.
#[inline(always)]
fn column<V: Copy, const N: usize>(lines: &[[V; N]; N], at: usize) -> [V; N] {
    let mut column = lines[0];
    for (value, line) in column.iter_mut().zip(lines) {
        *value = line[at];
    }
    column
}

/// Returns the vector that begins at element `at`.
#[inline(always)]
fn load<S: Simd>(from: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&from[at..at + S::F32_LANES]).0[0]
}

/// Writes a vector that begins at element `at`.
#[inline(always)]
fn store<S: Simd>(to: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut to[at..at + S::F32_LANES]).0[0] = value;
}
