//! Panels of 16-bit weights: half of the memory of floats.
//!
//! A panel has the order of panels of floats, with two weights in each f32 word.
//!
//! Before a task multiplies its rows with a part of a panel, it widens that part to floats in thread-local memory. The
//! floats are exactly the values of the halves, so sums are bit for bit those of panels of floats with the same values.

use super::{PANEL, STEP, pack_into};
use crate::cpu::with_simd;
use crate::storage::saturated;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use std::ops::Range;

/// Whether columns of `k` weights can be stored in this way. Four weights would be as long as in
/// [8 bits](super::int8), and [`Panels::new`](super::Panels::new) has nothing but the length to tell them apart.
pub(crate) fn takes(k: usize) -> bool {
    k != 4
}

/// Returns the number of f32 words that `cols` columns of `k` weights occupy as panels of halves.
pub(crate) fn packed_len(cols: usize, k: usize) -> usize {
    cols.next_multiple_of(STEP) * k / 2
}

/// Rounds a row-major matrix `[cols, k]` and packs it into panels of halves, on all threads.
pub(crate) fn pack_matrix(cols: usize, k: usize, data: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; packed_len(cols, k)];
    let panels = out.par_chunks_mut(packed_len(PANEL, k).max(1)).zip(data.par_chunks((PANEL * k).max(1)));
    panels.for_each(|(panel, columns)| {
        let mut floats = vec![0.0; 2 * panel.len()];
        pack_into(&mut floats, columns.len() / k, k, |col, at, out| {
            out.iter_mut().zip(&columns[col * k + at..]).for_each(|(to, w)| *to = saturated(*w));
        });
        bytemuck::cast_slice_mut::<f32, f16>(panel).convert_from_f32_slice(&floats);
    });
    out
}

/// One panel of 16-bit weights: `[width / grain, depth, grain]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halves<'a>(&'a [f16]);

impl<'a> Halves<'a> {
    /// Wraps the words of a panel.
    pub(super) fn new(words: &'a [f32]) -> Self {
        Self(bytemuck::cast_slice(words))
    }

    /// Returns the number of weights.
    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    /// Widens the weights `part` of every grain, of `grain` weights in all, to floats in `grains`.
    pub(super) fn widen<'f>(self, grains: impl Iterator<Item = &'f mut [f32]>, grain: usize, part: Range<usize>) {
        grains.zip(self.0.chunks_exact(grain)).for_each(|(to, halves)| widen(to, &halves[part.clone()]));
    }
}

/// Widens halves, a multiple of [`STEP`]. The crate `half` converts eight at a time by a call, which takes several times
/// as long.
fn widen(to: &mut [f32], halves: &[f16]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(unit) = x86::F16c::try_new() {
        return unit.vectorize(
            #[inline(always)]
            || x86::widen(unit, to, halves),
        );
    }
    with_simd(
        #[inline(always)]
        || widen_by_arithmetic(to, halves),
    );
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use half::f16;
    use std::arch::x86_64::_mm256_cvtph_ps;

    pulp::simd_type! {
        /// The instructions that convert between f16 and f32. Every processor with AVX2 has them.
        pub(super) struct F16c {
            avx: "avx",
            f16c: "f16c",
        }
    }

    #[inline(always)]
    pub(super) fn widen(_: F16c, to: &mut [f32], halves: &[f16]) {
        for (to, halves) in to.as_chunks_mut::<8>().0.iter_mut().zip(halves.as_chunks::<8>().0) {
            let halves = pulp::cast(halves.map(f16::to_bits));
            #[expect(unsafe_code, reason = "the crates that wrap instructions have not got this one")]
            // SAFETY: there is an `F16c` only where the processor has the instruction.
            let floats = unsafe { _mm256_cvtph_ps(halves) };
            *to = pulp::cast(floats);
        }
    }
}

#[inline(always)]
fn widen_by_arithmetic(to: &mut [f32], halves: &[f16]) {
    // Pieces of a constant length, so that the compiler vectorises the loop over them.
    for (to, halves) in to.as_chunks_mut::<STEP>().0.iter_mut().zip(halves.as_chunks::<STEP>().0) {
        // All values are read before any is written: compilers vectorise this form.
        let mut values = [0.0; STEP];
        for i in 0..STEP {
            values[i] = widened(halves[i].to_bits());
        }
        *to = values;
    }
}

/// Returns the value of a half with these bits, without branches.
#[inline(always)]
fn widened(half: u16) -> f32 {
    // The exponent of an f32 is larger by 112, and begins at bit 23.
    const BIAS: u32 = 112 << 23;
    const ONE: u32 = 1 << 23;
    let sign = (u32::from(half) & 0x8000) << 16;
    let magnitude = (u32::from(half) & 0x7fff) << 13;
    let normal = magnitude + BIAS;
    // A subnormal half has the steps of a number from 2^-14 to 2^-13, and begins at zero instead of 2^-14.
    let subnormal = f32::from_bits(normal + ONE) - f32::from_bits(BIAS + ONE);
    let value = if magnitude < ONE { subnormal.to_bits() } else { normal };
    // The largest exponent, of infinities and NaNs, is that of an f32 as well.
    let value = if magnitude < 31 * ONE { value } else { normal + BIAS };
    f32::from_bits(sign | value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_to_its_value() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for widen in [widen, widen_by_arithmetic] {
            let mut floats = vec![0.5; halves.len()];
            widen(&mut floats, &halves);
            for (got, half) in floats.iter().zip(&halves) {
                let same = got.to_bits() == half.to_f32().to_bits() || got.is_nan() && half.is_nan();
                assert!(same, "{:#x}: {got}, expected {half}", half.to_bits());
            }
        }
    }
}
