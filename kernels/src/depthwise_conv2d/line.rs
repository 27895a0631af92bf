//! The CPU form of depthwise convolutions: one line of the output, pixel by pixel, with the sums of several vectors of
//! channels in registers.

use super::DepthwiseConv2d;
use pulp::{Simd, WithSimd};

/// Vectors whose sums are computed together: enough independent sums to hide the latency of an addition.
const VECTORS: usize = 4;

/// One line of the output.
pub(super) struct Line<'a> {
    pub(super) conv: &'a DepthwiseConv2d,
    /// Index of the line, counted over all images.
    pub(super) index: usize,
    /// The input tensors, whose channels are side by side.
    pub(super) x: [Input<'a>; 2],
    /// `[3, 3, c]`
    pub(super) w: &'a [f32],
    /// Values added to the sums: `bias [c]` and the image's `shift [c]`, either of which may be empty.
    pub(super) added: [&'a [f32]; 2],
    /// `[ow, c]`
    pub(super) y: &'a mut [f32],
}

/// Input tensor that holds some of the channels.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) channels: usize,
    /// `[n, h, w, channels]`
    pub(super) values: &'a [f32],
}

/// The factors of one tap of the kernel at one pixel.
#[derive(Clone, Copy, Default)]
struct Tap<'a> {
    /// Channels of the input pixel under the tap.
    x: &'a [f32],
    /// Weights of the tap for these channels.
    w: &'a [f32],
}

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
            for Input { channels, values } in self.x {
                let (mut taps, mut count) = ([Tap::default(); 9], 0);
                for (ky, kx) in rows().flat_map(|ky| columns().map(move |kx| (ky, kx))) {
                    let at = (image * h + top + ky - 1) * w + ox * stride + kx - 1;
                    let w = &self.w[(3 * ky + kx) * c + first..][..channels];
                    taps[count] = Tap { x: &values[at * channels..][..channels], w };
                    count += 1;
                }
                let added = self.added.map(|values| values.get(first..).unwrap_or_default());
                sums(simd, &taps[..count], added, &mut pixel[first..][..channels]);
                first += channels;
            }
        }
    }
}

/// Computes some channels `y` of one output pixel.
#[inline(always)]
fn sums<S: Simd>(simd: S, taps: &[Tap<'_>], added: [&[f32]; 2], y: &mut [f32]) {
    let (block, mut at) = (VECTORS * S::F32_LANES, 0);
    while at + block <= y.len() {
        vectors::<S, VECTORS>(simd, taps, added, at, y);
        at += block;
    }
    while at + S::F32_LANES <= y.len() {
        vectors::<S, 1>(simd, taps, added, at, y);
        at += S::F32_LANES;
    }
    for (c, y) in y.iter_mut().enumerate().skip(at) {
        let start: f32 = added.iter().filter_map(|values| values.get(c)).sum();
        *y = taps.iter().fold(start, |sum, tap| sum + tap.x[c] * tap.w[c]);
    }
}

/// Computes `V` vectors of channels of one output pixel, from channel `at` on.
#[inline(always)]
fn vectors<S: Simd, const V: usize>(simd: S, taps: &[Tap<'_>], added: [&[f32]; 2], at: usize, y: &mut [f32]) {
    let len = V * S::F32_LANES;
    let mut sums = [simd.splat_f32s(0.0); V];
    for values in added.iter().filter(|values| !values.is_empty()) {
        let values = S::as_simd_f32s(&values[at..at + len]).0;
        for v in 0..V {
            sums[v] = simd.add_f32s(sums[v], values[v]);
        }
    }
    for Tap { x, w } in taps {
        let (x, w) = (S::as_simd_f32s(&x[at..at + len]).0, S::as_simd_f32s(&w[at..at + len]).0);
        for v in 0..V {
            sums[v] = simd.mul_add_e_f32s(x[v], w[v], sums[v]);
        }
    }
    *S::as_mut_simd_f32s(&mut y[at..at + len]).0.first_chunk_mut().expect("as many vectors") = sums;
}
