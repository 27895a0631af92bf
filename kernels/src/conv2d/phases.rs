//! Convolutions of an upsampled map on a GPU, in four phases.
//!
//! With one pixel of padding, the output pixels `2 i` and `2 i + 1` of a line read, with `a b c` for the pixels `i - 1`
//! to `i + 1` of `x` and `g` for the three taps,
//!
//! ```text
//! y[2 i]     = g0 a + (g1 + g2) b
//! y[2 i + 1] = (g0 + g1) b + g2 c
//! ```
//!
//! The same holds for columns. So each of the four *phases*, the positions in the 2x2 output pixels over a pixel of `x`,
//! is a 2x2 convolution of `x` itself, which multiplies four times where the definition does nine times. The taps of a
//! phase are summed when weights are loaded, before they are rounded to the type in which they are stored.
//!
//! Moments are those of 64 pixels of one phase: tile `4 t + p` has those of phase `p` over the pixels `64 t` to `64 t +
//! 63` of `x`. This is so wherever an image has whole tiles of pixels of `x`, and on every device.
//!
//! The CPU form multiplies even less often: see `winograd`.

use super::Conv2d;
use crate::channel_moments;
use crate::kernel::DType;
use crate::storage::Storage;
use crate::tile::TILE;
use rayon::prelude::*;

/// Number of phases, and of the taps of each.
pub(super) const PHASES: usize = 4;

/// Returns whether a GPU computes the convolution in phases, and moments are those of phases.
pub(super) fn suits(conv: &Conv2d) -> bool {
    let measurable = !conv.moments || conv.h.saturating_mul(conv.w).is_multiple_of(TILE);
    conv.keeps_size() && conv.upsample == 2 && measurable
}

/// Computes the moments of some lines of the output on the CPU, from an even one on, and of a multiple of 256 pixels.
/// `moments` may be longer.
pub(super) fn write_moments(conv: &Conv2d, lines: &[f32], moments: &mut [f32]) {
    let len = lines.len() / TILE * 2;
    channel_moments::write_reordered(conv.co, lines, |i| row_at(conv.w, i), &mut moments[..len]);
}

/// Returns the pixel that is number `i` in the order of the moments: 64 pixels of `x` in the first phase, these in the
/// other phases, then the next 64. `w` is the width of `x`.
fn row_at(w: usize, i: usize) -> usize {
    let (phase, pixel) = (i / TILE % PHASES, i / (PHASES * TILE) * TILE + i % TILE);
    (2 * (pixel / w) + phase / 2) * 2 * w + 2 * (pixel % w) + phase % 2
}

/// Returns the weights `w [co, ci, 3, 3]` of all phases, `[4 * co, 2, 2, ci]`: those of all phases of an output channel,
/// then those of the next. Phases and taps run along columns first.
pub(crate) fn phase_weights(ci: usize, w: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; w.len() / 9 * PHASES * PHASES];
    let blocks = out.par_chunks_mut((PHASES * PHASES * ci).max(1)).zip(w.par_chunks((9 * ci).max(1)));
    blocks.for_each(|(out, w)| {
        for (at, out) in out.chunks_mut(ci).enumerate() {
            let (phase, tap) = (at / PHASES, at % PHASES);
            let (rows, cols) = (summed(phase / 2, tap / 2), summed(phase % 2, tap % 2));
            for (out, g) in out.iter_mut().zip(w.chunks(9)) {
                *out = rows.clone().flat_map(|y| cols.clone().map(move |x| g[3 * y + x])).sum();
            }
        }
    });
    out
}

/// Returns the taps of a line of three that tap `tap` of a phase stands for.
fn summed(phase: usize, tap: usize) -> std::ops::Range<usize> {
    match (phase, tap) {
        (0, 0) => 0..1,
        (0, _) => 1..3,
        (_, 0) => 0..2,
        (_, _) => 2..3,
    }
}

/// Returns weights close to `w`, of `shape` `[co, ci, 3, 3]`, whose sums `storage` holds exactly.
pub fn with_exact_sums(storage: Storage, shape: &[usize], w: Vec<f32>) -> Vec<f32> {
    // Sums of four whole numbers of this size are below 127, or exact in 11 bits.
    let (in_8_bits, most) = match storage.bytes(DType::WeightSum) {
        1 => (true, 31.0),
        2 => (false, 511.0),
        _ => return w,
    };
    // The smallest f16.
    let least = 2.0_f32.powi(-24);
    let exact = |w: &[f32]| {
        let largest = w.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        if largest == 0.0 || !largest.is_finite() {
            return w.to_vec();
        }
        let step = (largest / most).log2().ceil().exp2().max(least);
        let mut steps: Vec<f32> = w.iter().map(|w| (w / step).round()).collect();
        if in_8_bits {
            // 8-bit weights are multiples of the 127th part of the largest. So the largest sum of every phase, which is
            // that of the first input channel, becomes 127 steps.
            steps[..9].copy_from_slice(&[32.0, 32.0, 32.0, 32.0, 31.0, 32.0, 32.0, 32.0, 32.0]);
        }
        steps.into_iter().map(|w| w * step).collect::<Vec<_>>()
    };
    w.chunks((9 * shape[1]).max(1)).flat_map(exact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv2d::cases::plain;
    use crate::random::Random;
    use crate::storage::WeightType;

    #[test]
    fn every_tap_is_in_one_sum_of_every_phase() {
        let w: Vec<f32> = (0..9_u16).map(|tap| f32::from(1_u16 << tap)).collect();
        let sums = phase_weights(1, &w);
        for sums in sums.chunks(PHASES) {
            assert_eq!(sums.iter().sum::<f32>(), 511.0, "{sums:?}");
        }
        // The first phase reads one line above its own and one column to the left.
        assert_eq!(sums[..PHASES], [1.0, 2.0 + 4.0, 8.0 + 64.0, 16.0 + 32.0 + 128.0 + 256.0], "{sums:?}");
    }

    #[test]
    fn sums_are_stored_as_they_are() {
        let (co, ci) = (5, 7);
        let mut random = Random::new(1);
        let w: Vec<f32> = (0..co * ci * 9).map(|_| random.normal()).collect();
        let int8 = Storage::F16.with_weights(WeightType::Int8);
        for (storage, off) in [(Storage::F16, 0.01), (int8, 0.3)] {
            let exact = with_exact_sums(storage, &[co, ci, 3, 3], w.clone());
            let sums = phase_weights(ci, &exact);
            assert_eq!(storage.rounded(DType::WeightSum, &[4 * co, 2, 2, ci], sums.clone()), sums, "{storage}");
            let moved = w.iter().zip(&exact).filter(|(w, exact)| (*w - *exact).abs() > off).count();
            assert!(moved <= 9 * co, "{moved} weights have moved in {storage}");
        }
        assert_eq!(with_exact_sums(Storage::F32, &[co, ci, 3, 3], w.clone()), w, "sums of 24 bits");
        assert_eq!(with_exact_sums(int8, &[1, 2, 3, 3], vec![0.0; 18]), [0.0; 18], "nothing to round");
        let in_f16 = |w: [f32; 9]| with_exact_sums(Storage::F16, &[1, 1, 3, 3], w.to_vec());
        let tiny = phase_weights(1, &in_f16([3e-7, 1e-7, 0.0, 0.0, 2e-7, 0.0, 0.0, 0.0, 1e-7]));
        assert_eq!(Storage::F16.rounded(DType::WeightSum, &[4, 2, 2, 1], tiny.clone()), tiny, "as small as f16 can be");
        assert_eq!(in_f16([f32::INFINITY; 9]), [f32::INFINITY; 9], "no step is so large");
    }

    #[test]
    fn moments_take_every_pixel_of_a_map_once() {
        let (h, w) = (8, 24);
        let mut rows: Vec<usize> = (0..4 * h * w).map(|i| row_at(w, i)).collect();
        assert_eq!(rows[..3], [0, 2, 4], "every other pixel of the first line");
        assert_eq!(rows[24..26], [96, 98], "then of the third");
        assert_eq!([rows[64], rows[128], rows[192]], [1, 48, 49], "the phases beside and below it");
        rows.sort_unstable();
        assert!(rows.into_iter().eq(0..4 * h * w), "every pixel once");
    }

    #[test]
    fn other_convolutions_are_computed_by_definition() {
        let upsampled = Conv2d { upsample: 2, ..plain(1, 8, 8, 4, 4) };
        assert!(suits(&upsampled));
        assert!(suits(&Conv2d { moments: true, ..upsampled.clone() }));
        for other in [
            plain(1, 8, 8, 4, 4),
            Conv2d { stride: 2, ..upsampled.clone() },
            Conv2d { pad_start: 0, ..upsampled.clone() },
            Conv2d { kernel: 1, pad_start: 0, pad_end: 0, ..upsampled.clone() },
            Conv2d { moments: true, h: 7, ..upsampled.clone() },
            Conv2d { moments: true, h: usize::MAX, ..upsampled },
        ] {
            assert!(!suits(&other), "{other:?}");
        }
    }
}
