//! The CPU form of depthwise convolutions: a line of the output, pixel by pixel, sums in registers along the channels.

use super::DepthwiseConv2d;
use pulp::{Simd, WithSimd};

/// Vectors whose sums are in registers together: enough that no sum waits for the one before.
const VECTORS: usize = 4;

/// A line of the output to be made.
pub(super) struct Line<'a> {
    pub(super) conv: &'a DepthwiseConv2d,
    /// Counted over all images.
    pub(super) index: usize,
    /// The tensors whose channels lie side by side, each with how many.
    pub(super) x: [(usize, &'a [f32]); 2],
    /// `[3, 3, c]`
    pub(super) w: &'a [f32],
    /// What is added: `bias [c]` and the image's `shift [c]`, either of which may be empty.
    pub(super) added: [&'a [f32]; 2],
    /// `[ow, c]`
    pub(super) y: &'a mut [f32],
}

/// What a tap multiplies: channels of its pixel, and their weights.
type Tap<'a> = (&'a [f32], &'a [f32]);

impl WithSimd for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let DepthwiseConv2d { h, w, c, stride, .. } = *self.conv;
        let (oh, _) = self.conv.out_size();
        let (image, top) = (self.index / oh, self.index % oh * stride);
        let rows = || (0..3).filter(move |ky| (1..=h).contains(&(top + ky)));
        for (ox, pixel) in self.y.chunks_exact_mut(c).enumerate() {
            let columns = || (0..3).filter(move |kx| (1..=w).contains(&(ox * stride + kx)));
            let mut first = 0;
            for (channels, x) in self.x {
                let (mut taps, mut count): ([Tap<'_>; 9], _) = ([(&[], &[]); 9], 0);
                for (ky, kx) in rows().flat_map(|ky| columns().map(move |kx| (ky, kx))) {
                    let at = (image * h + top + ky - 1) * w + ox * stride + kx - 1;
                    taps[count] = (&x[at * channels..][..channels], &self.w[(3 * ky + kx) * c + first..][..channels]);
                    count += 1;
                }
                let added = self.added.map(|values| values.get(first..).unwrap_or_default());
                sums(simd, &taps[..count], added, &mut pixel[first..][..channels]);
                first += channels;
            }
        }
    }
}

/// The sums of some channels of a pixel.
#[inline(always)]
fn sums<S: Simd>(simd: S, taps: &[Tap<'_>], added: [&[f32]; 2], y: &mut [f32]) {
    let (block, mut at) = (VECTORS * S::F32_LANES, 0);
    while at + block <= y.len() {
        some::<S, VECTORS>(simd, taps, added, (at, y));
        at += block;
    }
    while at + S::F32_LANES <= y.len() {
        some::<S, 1>(simd, taps, added, (at, y));
        at += S::F32_LANES;
    }
    for (c, y) in y.iter_mut().enumerate().skip(at) {
        let start: f32 = added.iter().filter_map(|values| values.get(c)).sum();
        *y = taps.iter().fold(start, |sum, (x, w)| sum + x[c] * w[c]);
    }
}

/// The sums of `V` vectors of channels from `at` on.
#[inline(always)]
fn some<S: Simd, const V: usize>(simd: S, taps: &[Tap<'_>], added: [&[f32]; 2], (at, y): (usize, &mut [f32])) {
    let len = V * S::F32_LANES;
    let mut sums = [simd.splat_f32s(0.0); V];
    for values in added.iter().filter(|values| !values.is_empty()) {
        let values = S::as_simd_f32s(&values[at..at + len]).0;
        for v in 0..V {
            sums[v] = simd.add_f32s(sums[v], values[v]);
        }
    }
    for (x, w) in taps {
        let (x, w) = (S::as_simd_f32s(&x[at..at + len]).0, S::as_simd_f32s(&w[at..at + len]).0);
        for v in 0..V {
            sums[v] = simd.mul_add_e_f32s(x[v], w[v], sums[v]);
        }
    }
    *S::as_mut_simd_f32s(&mut y[at..at + len]).0.first_chunk_mut().expect("as many vectors") = sums;
}
