//! The innermost loops of a product with panels: a tile of the result stays in registers while `k` passes by.
//!
//! Written once over the vectors of whatever the processor has: with AVX-512 six rows of a whole panel are 24 of its 32
//! registers; with AVX2, NEON and SSE six rows of 16 columns.

use super::STEP;
use super::product::Shared;
use pulp::{Scalar128b, Simd, WithSimd};
use std::array::from_fn;
use std::ops::Range;

/// Most rows of a tile.
pub(crate) const ROWS: usize = 6;

/// Rows of a product at the columns of one panel.
#[derive(Clone)]
pub(super) struct Strip<'a> {
    /// The rows of the other factor, `stride` apart, from the first of `k` on.
    pub(super) left: &'a [f32],
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// What is added up: a part of the panel's `depth`.
    pub(super) k: Range<usize>,
    /// `[width / grain, depth, grain]`
    pub(super) panel: &'a [f32],
    pub(super) width: usize,
    pub(super) depth: usize,
    pub(super) grain: usize,
    /// What will be read after this panel, as much as the panel at most: fetched into the caches meanwhile.
    pub(super) next: &'a [f32],
    /// Where the result is, from `at` on with rows `y_stride` apart; of the panel's columns `cols` are there.
    pub(super) y: &'a Shared<'a>,
    pub(super) at: usize,
    pub(super) y_stride: usize,
    pub(super) cols: usize,
    /// Whether it is added to what is there.
    pub(super) accumulate: bool,
}

/// The lanes of a vector.
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
        match (S::F32_LANES, self.grain / STEP) {
            (16, 4) => self.pass::<S, 4>(simd),
            (16, 3) => self.pass::<S, 3>(simd),
            (16, 2) => self.pass::<S, 2>(simd),
            (16, _) => self.pass::<S, 1>(simd),
            (8, _) => self.pass::<S, 2>(simd),
            (4, _) => self.pass::<S, 4>(simd),
            // Nothing known of the processor: four lanes are something that every compiler makes vectors of.
            _ => self.pass::<Scalar128b, 4>(Scalar128b),
        }
    }
}

impl Strip<'_> {
    /// All rows, `V` vectors of columns at a time.
    #[inline(always)]
    fn pass<S: Simd, const V: usize>(&self, simd: S) {
        assert_eq!(self.grain, V * S::F32_LANES, "columns of a grain");
        for col in (0..self.width).step_by(V * S::F32_LANES) {
            let mut next = self.next(col + V * S::F32_LANES);
            let share = next.len().div_ceil(self.rows.div_ceil(ROWS));
            for row in (0..self.rows).step_by(ROWS) {
                let (now, later) = next.split_at(share.min(next.len()));
                next = later;
                match self.rows - row {
                    1 => self.tile::<S, 1, V>(simd, row, col, now),
                    2 => self.tile::<S, 2, V>(simd, row, col, now),
                    3 => self.tile::<S, 3, V>(simd, row, col, now),
                    4 => self.tile::<S, 4, V>(simd, row, col, now),
                    5 => self.tile::<S, 5, V>(simd, row, col, now),
                    _ => self.tile::<S, ROWS, V>(simd, row, col, now),
                }
            }
        }
    }

    /// What is read once the columns before `col`, which are whole grains, are done.
    #[inline(always)]
    fn next(&self, col: usize) -> &[f32] {
        let grains = &self.panel[col * self.depth..];
        if grains.is_empty() { self.next } else { &grains[self.grain * self.k.start..self.grain * self.k.end] }
    }

    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(&self, simd: S, row: usize, col: usize, next: &[f32]) {
        let left: [&[f32]; M] = from_fn(|i| &self.left[(row + i) * self.stride..][..self.k.len()]);
        let panel = &self.panel[col * self.depth..][self.grain * self.k.start..self.grain * self.k.end];
        let sums = sums::<S, M, V>(simd, left, panel, next);
        let there = (V * S::F32_LANES).min(self.cols.saturating_sub(col));
        for i in 0..M {
            let at = self.at + (row + i) * self.y_stride + col;
            #[expect(unsafe_code, reason = "columns of a row that belong to whoever runs this strip")]
            // SAFETY: whoever makes a strip has its rows and columns to itself, and this is the only piece of them.
            let y = unsafe { self.y.piece(at, there) };
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

/// Sums over `k` of `M` rows and `V` vectors of columns, which are a grain. A function of its own that nothing borrows the
/// sums of, so that they stay in registers: twice as fast as when the compiler also keeps them in memory.
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
        // Of a length that the compiler knows, so that nothing but the sums is left of the loop.
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

/// The sums with the products of one of `k` added. Loops, not closures, so that nothing but `inline(always)` has to be inlined.
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

/// Steps of `k` that are one piece of code, and between two looks at what is to be fetched.
pub(super) const STRETCH: usize = 16;

/// Values in a line of the cache.
const LINE: usize = 16;

/// Asks for a line of the cache; a processor that we cannot ask fetches it when it is read.
#[inline(always)]
fn prefetch(line: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "the instruction takes an address")]
    // SAFETY: the address is that of a slice, and the instruction changes nothing but caches.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
