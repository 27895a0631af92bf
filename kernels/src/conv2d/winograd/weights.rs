//! Transformation of weights for Winograd's algorithm, done once when they are loaded.

use super::WinogradForm;
use super::lines::weight_line;
use crate::panels::{PANEL, STEP, grain};
use rayon::prelude::*;
use std::array::from_fn;

/// Returns `G g G^T` of the weights `w [co, ci, 3, 3]` for a form with `N * N` products per tile.
///
/// The result is a sequence of panels of output channels (see `panels`), each `[N, N, width / grain, ci, grain]`.
pub(crate) fn transformed_weights(form: WinogradForm, ci: usize, co: usize, w: &[f32]) -> Vec<f32> {
    match form {
        WinogradForm::Small => transformed::<4>(ci, co, w),
        WinogradForm::Upsampled => transformed::<5>(ci, co, w),
        WinogradForm::Large => transformed::<6>(ci, co, w),
    }
}

/// Implements [`transformed_weights`] for `N` products along the edge of a tile.
fn transformed<const N: usize>(ci: usize, co: usize, w: &[f32]) -> Vec<f32> {
    let padded = co.next_multiple_of(STEP);
    let mut out = vec![0.0; N * N * ci * padded];
    out.par_chunks_mut(N * N * ci * PANEL).enumerate().for_each(|(panel, out)| {
        let first = panel * PANEL;
        let width = PANEL.min(padded - first);
        let grain = grain(width);
        // A block of input channels is small enough that the part of the result it touches stays in the core's cache.
        for block in (0..ci).step_by(STEP) {
            for o in 0..width.min(co - first) {
                for i in block..(block + STEP).min(ci) {
                    let tap = |y: usize, x: usize| f64::from(w[((first + o) * ci + i) * 9 + 3 * y + x]);
                    let rows: [[f64; N]; 3] = from_fn(|y| weight_line(from_fn(|x| tap(y, x))));
                    let both: [[f64; N]; N] = from_fn(|x| weight_line(from_fn(|y| rows[y][x])));
                    for place in 0..N * N {
                        let at = place * ci * width + o / grain * grain * ci + i * grain + o % grain;
                        out[at] = both[place % N][place / N] as f32;
                    }
                }
            }
        }
    });
    out
}
