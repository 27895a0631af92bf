//! The innermost loops of a product with panels: a tile of sums stays in vector registers while `k` passes by.
//!
//! The loops are written once, over the vector type of the processor. With AVX-512 a tile has six rows of a whole
//! panel, 24 of the 32 registers; with AVX2 it has six rows of 16 columns, and with vectors of four lanes five.

use super::product::Target;
use super::{Left, STEP};
use pulp::{Scalar128b, Simd, WithSimd};
use std::array::from_fn;
use std::ops::Range;

/// Largest number of rows of a tile. Blocks of rows are multiples of it, also where tiles have fewer.
pub(crate) const ROWS: usize = 6;

/// Returns the number of rows of a tile for vectors of `lanes`. With six rows, NEON's four vectors of columns, 24 of sums
/// and six values of rows would be two more than there are registers: sums would be stored and loaded in every step.
const fn rows_of(lanes: usize) -> usize {
    if lanes == 4 { 5 } else { ROWS }
}

/// The product of some rows with a part of one panel.
pub(super) struct Strip<'a> {
    /// The rows, from the first `k` of the part on.
    pub(super) left: Left<'a>,
    pub(super) panel: PanelPart<'a>,
    pub(super) target: Target<'a>,
    /// Columns to write: those of the panel without its padding.
    pub(super) cols: usize,
    /// Whether the product is added to the target instead of replacing it.
    pub(super) accumulate: bool,
}

/// A range of `k` of one panel.
pub(super) struct PanelPart<'a> {
    /// The whole panel, `[width / grain, depth, grain]`.
    pub(super) values: &'a [f32],
    /// Columns of the panel, padding included.
    pub(super) width: usize,
    /// Weights of a column.
    pub(super) depth: usize,
    /// Columns of a grain.
    pub(super) grain: usize,
    /// The part to sum over, inside `0..depth`.
    pub(super) k: Range<usize>,
    /// Values that are read after this part, at most as many as a grain of it has: prefetched into the caches
    /// meanwhile.
    pub(super) next: &'a [f32],
}

/// A query for the number of f32 lanes of the processor's vectors.
pub(super) struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

impl WithSimd for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match (S::F32_LANES, self.panel.grain / STEP) {
            (16, 4) => self.pass::<S, 4>(simd),
            (16, 3) => self.pass::<S, 3>(simd),
            (16, 2) => self.pass::<S, 2>(simd),
            (16, _) => self.pass::<S, 1>(simd),
            (8, _) => self.pass::<S, 2>(simd),
            (4, _) => self.pass::<S, 4>(simd),
            // No vectors known for this processor: every compiler vectorises loops over four lanes.
            _ => self.pass::<Scalar128b, 4>(Scalar128b),
        }
    }
}

impl Strip<'_> {
    /// Multiplies all rows, grain by grain. A grain is `V` vectors wide.
    #[inline(always)]
    fn pass<S: Simd, const V: usize>(&self, simd: S) {
        assert_eq!(self.panel.grain, V * S::F32_LANES, "columns of a grain");
        for col in (0..self.panel.width).step_by(V * S::F32_LANES) {
            let mut next = self.panel.after(col + V * S::F32_LANES);
            let most = rows_of(S::F32_LANES);
            let share = next.len().div_ceil(self.left.rows.div_ceil(most));
            for row in (0..self.left.rows).step_by(most) {
                let (now, later) = next.split_at(share.min(next.len()));
                next = later;
                match self.left.rows - row {
                    1 => self.tile::<S, 1, V>(simd, row, col, now),
                    2 => self.tile::<S, 2, V>(simd, row, col, now),
                    3 => self.tile::<S, 3, V>(simd, row, col, now),
                    4 => self.tile::<S, 4, V>(simd, row, col, now),
                    left if left == 5 || most == 5 => self.tile::<S, 5, V>(simd, row, col, now),
                    _ => self.tile::<S, ROWS, V>(simd, row, col, now),
                }
            }
        }
    }

    /// Computes `M` rows from `row` on, at the columns of the grain that begins at column `col`.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(&self, simd: S, row: usize, col: usize, next: &[f32]) {
        let (rows, target, depth) = (&self.left, &self.target, self.panel.k.len());
        let left: [&[f32]; M] = from_fn(|i| &rows.values[(row + i) * rows.stride..][..depth]);
        let sums = sums::<S, M, V>(simd, left, self.panel.grain_at(col), next);
        let there = (V * S::F32_LANES).min(self.cols.saturating_sub(col));
        for i in 0..M {
            let at = target.at + (row + i) * target.stride + col;
            #[expect(unsafe_code, reason = "columns of a row that belong to the caller of this strip")]
            // SAFETY: the caller of a strip has its rows and columns to itself, and this is the only piece of them.
            let y = unsafe { target.y.piece(at, there) };
            if there == V * S::F32_LANES {
                for (y, sum) in S::as_mut_simd_f32s(y).0.iter_mut().zip(sums[i]) {
                    *y = if self.accumulate { simd.add_f32s(*y, sum) } else { sum };
                }
            } else {
                let sums = sums[i];
                for (y, sum) in y.iter_mut().zip(bytemuck::cast_slice::<_, f32>(&sums)) {
                    *y = if self.accumulate { *y + sum } else { *sum };
                }
            }
        }
    }
}

impl<'a> PanelPart<'a> {
    /// Returns the part of the grain that begins at column `col`.
    #[inline(always)]
    fn grain_at(&self, col: usize) -> &'a [f32] {
        &self.values[col * self.depth..][self.grain * self.k.start..self.grain * self.k.end]
    }

    /// Returns the values that are read after the grains before column `col`.
    #[inline(always)]
    fn after(&self, col: usize) -> &'a [f32] {
        if col * self.depth == self.values.len() { self.next } else { self.grain_at(col) }
    }
}

/// Returns the sums over `k` for `M` rows and the `V` vectors of a grain.
///
/// Nothing borrows the sums inside this function, so that they stay in registers: twice as fast as when the compiler
/// also keeps them in memory.
#[inline(always)]
fn sums<S: Simd, const M: usize, const V: usize>(
    simd: S,
    left: [&[f32]; M],
    panel: &[f32],
    next: &[f32],
) -> [[S::f32s; V]; M] {
    let grain = V * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    let depth = left[0].len();
    let share = next.len().div_ceil(depth.div_ceil(STRETCH).max(1)).next_multiple_of(LINE);
    let mut next = next.chunks(share.max(LINE));
    let stretches = panel.chunks_exact(STRETCH * grain);
    let rest = stretches.remainder();
    for (stretch, panel) in stretches.enumerate() {
        next.next().unwrap_or(&[]).chunks(LINE).for_each(prefetch);
        // Arrays of a constant length: without bounds checks, the loop contains nothing but the sums.
        let left: [&[f32; STRETCH]; M] =
            from_fn(|i| left[i][stretch * STRETCH..].first_chunk().expect("a row is as long"));
        for k in 0..STRETCH {
            let mut column = [0.0; M];
            for i in 0..M {
                column[i] = left[i][k];
            }
            sums = step(simd, sums, column, &panel[k * grain..(k + 1) * grain]);
        }
    }
    for (k, values) in (depth - rest.len() / grain..).zip(rest.chunks_exact(grain)) {
        sums = step(simd, sums, from_fn(|i| left[i][k]), values);
    }
    sums
}

/// Adds the products at one `k` to the sums. It has loops instead of closures, so that inlining depends on nothing but
/// `inline(always)`.
#[inline(always)]
fn step<S: Simd, const M: usize, const V: usize>(
    simd: S,
    mut sums: [[S::f32s; V]; M],
    left: [f32; M],
    values: &[f32],
) -> [[S::f32s; V]; M] {
    let values: [S::f32s; V] = *S::as_simd_f32s(values).0.first_chunk().expect("a grain");
    for i in 0..M {
        let x = simd.splat_f32s(left[i]);
        for v in 0..V {
            sums[i][v] = simd.mul_add_e_f32s(x, values[v], sums[i][v]);
        }
    }
    sums
}

/// Steps of `k` that are unrolled into one piece of code. A prefetch happens before each stretch.
pub(super) const STRETCH: usize = 16;

/// Values in a cache line.
const LINE: usize = 16;

/// Prefetches a cache line into the second-level cache. Does nothing on processors other than x86-64.
#[inline(always)]
fn prefetch(line: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "the instruction takes an address")]
    // SAFETY: the address is that of a live slice, and the instruction changes nothing but caches.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
