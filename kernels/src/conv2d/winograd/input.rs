//! Input pixels under tiles, read where they lie or prepared line by line.

use super::Conv2d;
use crate::cpu::Threads;
use crate::prologue::Rows;

/// Lines of the input of an image.
pub(super) struct Lines<'a> {
    /// Index of the first line in the image.
    first: usize,
    /// Values `[lines, w, ci]`.
    values: &'a [f32],
}

impl Lines<'_> {
    /// Returns the `D` lines of `D` pixels under a tile. They are slices of the input if the tile lies inside the
    /// image, otherwise of `patch`, where pixels beyond the image are zeros.
    #[inline(always)]
    pub(super) fn under<'a, const D: usize>(
        &'a self,
        conv: &Conv2d,
        (row, col): (usize, usize),
        patch: &'a mut [f32],
    ) -> [&'a [f32]; D] {
        // Tiles are `D - 2` input pixels apart, and a patch begins one pixel before its tile.
        let (y, x) = (row * (D - 2), col * (D - 2));
        let at = |y: usize, x: usize| ((y - self.first) * conv.w + x) * conv.ci;
        let mut lines = [&[] as &[f32]; D];
        if y > 0 && x > 0 && y + D - 1 <= conv.h && x + D - 1 <= conv.w {
            for (i, line) in lines.iter_mut().enumerate() {
                *line = &self.values[at(y - 1 + i, x - 1)..][..D * conv.ci];
            }
            return lines;
        }
        patch.fill(0.0);
        let (left, right) = (1_usize.saturating_sub(x), D.min(conv.w + 1 - x));
        for i in 1_usize.saturating_sub(y)..D.min(conv.h + 1 - y) {
            let from = at(y + i - 1, x + left - 1);
            let inside = &self.values[from..][..(right - left) * conv.ci];
            patch[(i * D + left) * conv.ci..][..inside.len()].copy_from_slice(inside);
        }
        for (line, pixels) in lines.iter_mut().zip(patch.chunks_exact(D * conv.ci)) {
            *line = pixels;
        }
        lines
    }
}

/// Returns the lines under `rows` rows of tiles from `first_row` on, in memory or prepared in `scratch`.
pub(super) fn ready<'a, const D: usize>(
    conv: &Conv2d,
    x: &Rows<'a>,
    image: usize,
    (first_row, rows): (usize, usize),
    scratch: &'a mut Vec<f32>,
) -> Lines<'a> {
    let step = D - 2;
    let first = (first_row * step).saturating_sub(1);
    let end = ((first_row + rows - 1) * step + D - 1).min(conv.h);
    let [top, bottom] = [first, end].map(|line| (image * conv.h + line) * conv.w);
    Lines { first, values: x.ready(top..bottom, scratch, Threads::One) }
}
