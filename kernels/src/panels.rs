//! Products with weights that were laid out for it when they were loaded, and the memory they lie in.
//!
//! Weights `[cols, k]` lie as *panels* of 64 columns (the last one narrower, a multiple of 16), and a panel as *grains*, the
//! columns that the innermost loop takes at once: all of a grain for the first of `k`, then for the next, one line of the
//! cache after the other, which is the order in which a product reads them. Nothing is packed when a product runs, and rows
//! of the other factor are read where they lie.

pub(crate) mod int8;
mod product;
mod tile;

use rayon::prelude::*;
use std::ops::{Deref, DerefMut, Range};
use std::sync::OnceLock;
use tile::Lanes;

pub(crate) use product::{multiply, multiply_gated, multiply_part, multiply_strided};
pub(crate) use tile::ROWS;

/// Columns of a panel: four vectors of AVX-512, a width that divides almost every width of the model.
pub(crate) const PANEL: usize = 64;

/// The width of the last panel is a multiple of this.
pub(crate) const STEP: usize = 16;

/// Columns of a grain of a panel of `width`: all of them with vectors of 16, which keep as many sums in registers, else one
/// step.
pub(crate) fn grain(width: usize) -> usize {
    static LANES: OnceLock<usize> = OnceLock::new();
    let lanes = *LANES.get_or_init(|| pulp::Arch::new().dispatch(Lanes));
    if lanes == STEP { width } else { STEP.min(width) }
}

/// Values that begin at a line of the cache, so that no vector of a panel crosses two.
#[derive(Clone, Debug, Default)]
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Aligned {
    /// So many zeros.
    ///
    /// # Errors
    /// If there is no room for them.
    pub fn zeros(len: usize) -> Result<Self, std::collections::TryReserveError> {
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(16))?;
        lines.resize(len.div_ceil(16), Line([0.0; 16]));
        Ok(Self { lines, len })
    }

    /// Makes it as long at least.
    fn make_room(&mut self, len: usize) {
        if self.len < len {
            self.lines.resize(len.div_ceil(16), Line([0.0; 16]));
            self.len = len;
        }
    }
}

impl From<&[f32]> for Aligned {
    fn from(values: &[f32]) -> Self {
        let mut lines = vec![Line([0.0; 16]); values.len().div_ceil(16)];
        bytemuck::cast_slice_mut(&mut lines)[..values.len()].copy_from_slice(values);
        Self { lines, len: values.len() }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// Elements of `cols` columns of `k` values as panels.
pub(crate) fn packed_len(cols: usize, k: usize) -> usize {
    cols.next_multiple_of(STEP) * k
}

/// Lays out `cols` columns of `k` values, which `column` writes from a position of `k` on, 16 or fewer at a time.
pub(crate) fn pack(cols: usize, k: usize, column: impl Fn(usize, usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = vec![0.0; packed_len(cols, k)];
    let panels = out.par_chunks_mut(PANEL * k.max(1)).enumerate();
    panels.for_each(|(panel, out)| pack_panel(out, panel * PANEL, cols, k, &column));
    out
}

/// The same by one thread, to where there are zeros.
pub(crate) fn pack_into(out: &mut [f32], cols: usize, k: usize, column: impl Fn(usize, usize, &mut [f32])) {
    let panels = out.chunks_mut(PANEL * k.max(1)).enumerate();
    panels.for_each(|(panel, out)| pack_panel(out, panel * PANEL, cols, k, &column));
}

/// The grains of a panel whose columns begin at `first`: for each its columns that are there, its width and its place.
fn grains<T>(
    panel: &mut [T],
    first: usize,
    cols: usize,
    k: usize,
) -> impl Iterator<Item = (Range<usize>, usize, &mut [T])> {
    let grain = grain(PANEL.min(cols.next_multiple_of(STEP) - first));
    panel.chunks_mut(grain * k.max(1)).enumerate().map(move |(part, out)| {
        let first = first + part * grain;
        (first..(first + grain).min(cols), grain, out)
    })
}

/// The panel whose columns begin at `first`.
fn pack_panel<T: Copy + Default>(
    out: &mut [T],
    first: usize,
    cols: usize,
    k: usize,
    column: impl Fn(usize, usize, &mut [T]),
) {
    for (there, grain, out) in grains(out, first, cols, k) {
        for (block, out) in out.chunks_mut(STEP * grain).enumerate() {
            for (at, col) in there.clone().enumerate() {
                let mut values = [T::default(); STEP];
                let values = &mut values[..out.len() / grain];
                column(col, block * STEP, values);
                values.iter().enumerate().for_each(|(i, value)| out[i * grain + at] = *value);
            }
        }
    }
}

/// Lays out what `line` gives for every position of `k`, `cols` values each, to where there are zeros.
pub(crate) fn pack_lines<'a>(out: &mut [f32], cols: usize, k: usize, line: impl Fn(usize) -> &'a [f32]) {
    for (panel, out) in out.chunks_mut(PANEL * k.max(1)).enumerate() {
        for (there, grain, out) in grains(out, panel * PANEL, cols, k).filter(|(there, ..)| !there.is_empty()) {
            for (i, out) in out.chunks_exact_mut(grain).enumerate() {
                out[..there.len()].copy_from_slice(&line(i)[there.clone()]);
            }
        }
    }
}

/// `[cols, k]`, row by row, as panels.
pub(crate) fn pack_matrix(cols: usize, k: usize, data: &[f32]) -> Vec<f32> {
    pack(cols, k, |col, at, out| out.copy_from_slice(&data[col * k + at..][..out.len()]))
}

/// Weights as panels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    words: &'a [f32],
    int8: bool,
    k: usize,
    cols: usize,
}

/// One of them, with its width and its columns that are not there to fill it up.
#[derive(Clone, Copy, Debug)]
struct Panel<'a> {
    values: Values<'a>,
    width: usize,
    cols: usize,
}

#[derive(Clone, Copy, Debug)]
enum Values<'a> {
    /// With what is read after it, and fetched meanwhile.
    Floats(&'a [f32], &'a [f32]),
    Int8(int8::Int8<'a>),
}

impl<'a> Panels<'a> {
    /// Panels of floats or of 8 bits, which their length tells: it would be the same only for a `k` of 4/3.
    ///
    /// # Panics
    /// If these are no panels of that size: a bug of the calling kernel.
    pub(crate) fn new(words: &'a [f32], cols: usize, k: usize) -> Self {
        let int8 = words.len() == int8::packed_len(cols, k);
        assert!(int8 || words.len() == packed_len(cols, k), "{} words of {cols} columns of {k} as panels", words.len());
        Self { words, int8, k, cols }
    }

    fn count(self) -> usize {
        self.cols.div_ceil(PANEL)
    }

    /// A panel, and the one that is likely to be read next.
    fn panel(self, index: usize, next: usize) -> Panel<'a> {
        let first = index * PANEL;
        let width = PANEL.min(self.cols.next_multiple_of(STEP) - first);
        let values = if self.int8 {
            let words = &self.words[index * int8::packed_len(PANEL, self.k)..];
            Values::Int8(int8::Int8::new(&words[..int8::packed_len(width, self.k)], width))
        } else {
            let next = (next * PANEL * self.k).min(self.words.len());
            Values::Floats(&self.words[first * self.k..][..width * self.k], &self.words[next..])
        };
        Panel { values, width, cols: PANEL.min(self.cols - first) }
    }
}

/// Rows of one factor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    values: &'a [f32],
    rows: usize,
    stride: usize,
}

impl<'a> Left<'a> {
    /// `rows` rows that begin `stride` values apart.
    pub(crate) fn new(values: &'a [f32], rows: usize, stride: usize) -> Self {
        Self { values, rows, stride }
    }
}

#[cfg(test)]
mod tests {
    use super::product::Shared;
    use super::tile::Strip;
    use super::*;
    use crate::cpu::{Epilogue, Threads};
    use crate::kernel::Activation;

    /// Whole numbers, so that every order of adding gives the same.
    fn whole(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * step) % 13) as f32 - 6.0).collect()
    }

    /// `left * weights` from the definition, of rows `stride` apart.
    fn plain(left: &[f32], stride: usize, weights: &[f32], (rows, cols, k): (usize, usize, usize)) -> Vec<f32> {
        let sum = |row: usize, col: usize| (0..k).map(|i| left[row * stride + i] * weights[col * k + i]).sum();
        (0..rows * cols).map(|at| sum(at / cols, at % cols)).collect()
    }

    #[test]
    fn products_are_what_the_definition_gives() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads can be had");
        // Rows and columns about tiles, panels and tasks; `k` of one, of blocks of packing, of two parts.
        let sizes = [(1, 1, 1), (5, 3, 17), (6, 16, 16), (7, 63, 40), (13, 64, 15), (12, 65, 9), (70, 130, 33)];
        for (rows, cols, k) in sizes.into_iter().chain([(200, 177, 25), (9, 97, 1300), (401, 48, 20)]) {
            let (stride, weights) = (k + 3, whole(cols * k, 7));
            let (left, residual) = (whole(rows * stride, 5), whole(rows * cols, 3));
            let want = plain(&left, stride, &weights, (rows, cols, k));
            let packed = Aligned::from(pack_matrix(cols, k, &weights).as_slice());
            let (left, panels) = (Left::new(&left, rows, stride), Panels::new(&packed, cols, k));
            let bias = whole(cols, 2);
            let epilogue = Epilogue {
                bias: &bias,
                shift: &[],
                rows_per_image: rows,
                activation: Activation::Relu,
                residual: &residual,
            };
            for threads in [Threads::One, Threads::All] {
                let mut y = vec![f32::NAN; rows * cols];
                pool.install(|| multiply(&mut y, left, panels, None, threads));
                assert_eq!(y, want, "{rows}x{k} by {k}x{cols}, {threads:?}");
                pool.install(|| multiply(&mut y, left, panels, Some((&epilogue, 0)), threads));
                let finished = |i: usize| (want[i] + bias[i % cols]).max(0.0) + residual[i];
                assert!((0..y.len()).all(|i| y[i] == finished(i)), "{rows}x{k} by {k}x{cols} finished, {threads:?}");
            }
        }
    }

    /// Runs a strip with vectors of some kind, of which a grain has so many columns of a panel of that width.
    type Way = (&'static str, fn(usize) -> usize, Box<dyn Fn(Strip<'_>)>);

    #[test]
    fn every_kind_of_vectors_gives_the_same() {
        let (rows, k) = (9, 23);
        for (width, cols) in [(16, 5), (32, 32), (48, 33), (64, 64), (64, 50)] {
            let (left, weights) = (whole(rows * k, 5), whole(cols * k, 7));
            let want = plain(&left, k, &weights, (rows, cols, k));
            let panel_of = |grain: usize| {
                let mut panel = vec![0.0; width * k];
                let at = |col: usize, i: usize| col / grain * grain * k + i * grain + col % grain;
                (0..cols * k).for_each(|i| panel[at(i / k, i % k)] = weights[i]);
                panel
            };
            let mut ways: Vec<Way> = vec![
                ("what there is", grain, Box::new(|strip| pulp::Arch::new().dispatch(strip))),
                ("no vectors", |_| STEP, Box::new(|strip| pulp::WithSimd::with_simd(strip, pulp::Scalar))),
                ("four lanes", |_| STEP, Box::new(|strip| pulp::WithSimd::with_simd(strip, pulp::Scalar128b))),
            ];
            #[cfg(target_arch = "x86_64")]
            if let Some(avx2) = pulp::x86::V3::try_new() {
                ways.push(("AVX2", |_| STEP, Box::new(move |strip| pulp::Simd::vectorize(avx2, strip))));
            }
            for (name, grain, run) in &ways {
                let grain = grain(width);
                let panel = panel_of(grain);
                // A gap after every row, which nobody writes; added to what is there the second time.
                let mut y = vec![0.5; rows * (cols + 2)];
                for (accumulate, times) in [(false, 1.0), (true, 2.0)] {
                    let (panel, y, left) = (&panel[..], &Shared::new(&mut y), &left[..]);
                    let (at, stride, y_stride) = (0, k, cols + 2);
                    let (k, depth) = (0..k, k);
                    let next = panel;
                    run(Strip {
                        left,
                        stride,
                        rows,
                        k,
                        panel,
                        width,
                        depth,
                        grain,
                        next,
                        y,
                        at,
                        y_stride,
                        cols,
                        accumulate,
                    });
                    for (row, want) in want.chunks(cols).enumerate() {
                        #[expect(unsafe_code, reason = "a row of what was written")]
                        // SAFETY: no strip runs any more.
                        let got = unsafe { y.piece(row * y_stride, y_stride) };
                        assert!(
                            got[..cols].iter().zip(want).all(|(got, want)| *got == times * want),
                            "{name}, {width}"
                        );
                        assert_eq!(got[cols..], [0.5, 0.5], "{name} wrote into a gap");
                    }
                }
            }
        }
    }

    #[test]
    fn panels_begin_at_lines_of_the_cache() {
        let values = Aligned::from(&[1.0, 2.0, 3.0][..]);
        assert_eq!((&values[..], values.as_ptr().align_offset(64)), (&[1.0, 2.0, 3.0][..], 0));
        assert_eq!(Aligned::zeros(17).expect("there is room").len(), 17);
    }

    #[test]
    #[should_panic(expected = "as panels")]
    fn weights_of_another_size_are_refused() {
        Panels::new(&[0.0; 32], 3, 3);
    }

    #[test]
    #[should_panic(expected = "of 5")]
    fn a_short_product_is_refused() {
        let packed = pack_matrix(3, 1, &[1.0; 3]);
        multiply(&mut [0.0; 5], Left::new(&[1.0; 2], 2, 1), Panels::new(&packed, 3, 1), None, Threads::One);
    }
}
