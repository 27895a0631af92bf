//! Matrix products on the CPU with right factors that are packed: weights once, when they are loaded, and the keys and
//! values of attention in every run.
//!
//! Weights `[cols, k]` are stored as *panels* of `PANEL` = 64 columns; the last panel may be narrower, a multiple of
//! `STEP` = 16 columns, filled up with zeros. A panel consists of *grains*, the columns that the innermost loop takes
//! at once. A grain stores its columns for the first `k`, then for the next `k`, and so on: `[k, grain]`. A product
//! therefore reads weights strictly in memory order, one cache line after the other.
//!
//! Nothing is packed while a product runs, and the rows of the left factor are read where they lie. Panels in 16 or 8
//! bits are widened to floats part by part, in memory that every thread keeps.
//!
//! * `product` divides a product into tasks for threads, and a task into strips.
//! * `tile` has the innermost loops, which keep a tile of sums in vector registers.
//! * `f16` and `int8` have panels of 16-bit and 8-bit weights.

pub(crate) mod f16;
pub(crate) mod int8;
mod product;
mod tile;

#[cfg(test)]
mod tests;

use crate::storage::WeightType;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};
use std::sync::OnceLock;
use tile::Lanes;

pub(crate) use product::{multiply, multiply_gated, multiply_part, multiply_strided};
pub(crate) use tile::ROWS;

/// Columns of a panel: four vectors of AVX-512. Almost every width of the model is a multiple of it.
pub(crate) const PANEL: usize = 64;

/// The width of the last panel is a multiple of this number of columns.
pub(crate) const STEP: usize = 16;

/// Returns the number of columns of a grain in a panel of `width` columns.
///
/// A grain is the whole panel where vectors have 16 lanes, since a tile of sums that wide fits into registers, and
/// [`STEP`] columns where vectors are narrower.
pub(crate) fn grain(width: usize) -> usize {
    static LANES: OnceLock<usize> = OnceLock::new();
    let lanes = *LANES.get_or_init(|| pulp::Arch::new().dispatch(Lanes));
    if lanes == STEP { width } else { STEP.min(width) }
}

/// A vector of f32 whose memory begins at a cache line (64 bytes), so that no vector of a panel crosses two lines.
#[derive(Clone, Debug, Default)]
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

/// The values of one cache line.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Aligned {
    /// Allocates `len` zeros.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn zeros(len: usize) -> Result<Self, std::collections::TryReserveError> {
        let mut zeros = Self::with_capacity(len)?;
        zeros.grow_to(len);
        Ok(zeros)
    }

    /// Allocates memory for `len` values without touching it, to [grow](Self::grow_to) little by little.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn with_capacity(len: usize) -> Result<Self, std::collections::TryReserveError> {
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(16))?;
        Ok(Self { lines, len: 0 })
    }

    /// Grows the vector to at least `len` values by zeros.
    pub fn grow_to(&mut self, len: usize) {
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

/// Returns the number of f32 values that `cols` columns of `k` weights occupy as panels.
pub(crate) fn packed_len(cols: usize, k: usize) -> usize {
    cols.next_multiple_of(STEP) * k
}

/// Packs `cols` columns of `k` values into panels, on all threads.
///
/// `column(col, at, out)` writes the values `at..at + out.len()` of column `col` into `out`, at most 16 of them.
pub(crate) fn pack(cols: usize, k: usize, column: impl Fn(usize, usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = vec![0.0; packed_len(cols, k)];
    let panels = out.par_chunks_mut(PANEL * k.max(1)).enumerate();
    panels.for_each(|(panel, out)| pack_panel(out, panel * PANEL, cols, k, &column));
    out
}

/// Packs `cols` columns of `k` values into panels, on the calling thread. `out` holds zeros; `column` is called as by
/// [`pack`].
pub(crate) fn pack_into(out: &mut [f32], cols: usize, k: usize, column: impl Fn(usize, usize, &mut [f32])) {
    let panels = out.chunks_mut(PANEL * k.max(1)).enumerate();
    panels.for_each(|(panel, out)| pack_panel(out, panel * PANEL, cols, k, &column));
}

/// One grain of a panel that is being packed.
struct Grain<'a, T> {
    /// Columns of the matrix that the grain holds; empty if all of it is padding.
    cols: Range<usize>,
    /// Columns of the grain, padding included.
    width: usize,
    /// `[k, width]`
    out: &'a mut [T],
}

/// Returns the grains of the panel whose first column is `first`, of a matrix of `cols` columns.
fn grains<T>(panel: &mut [T], first: usize, cols: usize, k: usize) -> impl Iterator<Item = Grain<'_, T>> {
    let width = grain(PANEL.min(cols.next_multiple_of(STEP) - first));
    panel.chunks_mut(width * k.max(1)).enumerate().map(move |(part, out)| {
        let first = first + part * width;
        Grain { cols: first..(first + width).min(cols), width, out }
    })
}

/// Packs the panel whose first column is `first`, of a matrix of `cols` columns.
fn pack_panel<T: Copy + Default>(
    out: &mut [T],
    first: usize,
    cols: usize,
    k: usize,
    column: impl Fn(usize, usize, &mut [T]),
) {
    for Grain { cols, width, out } in grains(out, first, cols, k) {
        for (block, out) in out.chunks_mut(STEP * width).enumerate() {
            for (at, col) in cols.clone().enumerate() {
                let mut values = [T::default(); STEP];
                let values = &mut values[..out.len() / width];
                column(col, block * STEP, values);
                values.iter().enumerate().for_each(|(i, value)| out[i * width + at] = *value);
            }
        }
    }
}

/// Packs `k` rows of `cols` values into panels, on the calling thread: the transpose of what [`pack_into`] takes.
///
/// `line(i)` returns the row at position `i` of `k`. `out` holds zeros.
pub(crate) fn pack_lines<'a>(out: &mut [f32], cols: usize, k: usize, line: impl Fn(usize) -> &'a [f32]) {
    for (panel, out) in out.chunks_mut(PANEL * k.max(1)).enumerate() {
        for Grain { cols, width, out } in grains(out, panel * PANEL, cols, k).filter(|grain| !grain.cols.is_empty()) {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                out[..cols.len()].copy_from_slice(&line(i)[cols.clone()]);
            }
        }
    }
}

/// Packs a row-major matrix `[cols, k]` into panels of floats, on all threads.
pub(crate) fn pack_matrix(cols: usize, k: usize, data: &[f32]) -> Vec<f32> {
    pack(cols, k, |col, at, out| out.copy_from_slice(&data[col * k + at..][..out.len()]))
}

/// How the weights of a matrix are stored in its panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One f32 per weight.
    Floats,
    /// 16 bits per weight, see `panels/f16.rs`.
    F16,
    /// 8 bits per weight and an f32 scale per column, see `panels/int8.rs`.
    Int8,
}

impl Format {
    /// Returns the format of columns of `k` weights on a CPU device that stores matrices of weights as `weights`.
    pub(crate) fn of(weights: WeightType, k: usize) -> Self {
        match weights {
            WeightType::Int8 => Self::Int8,
            WeightType::F16 if f16::takes(k) => Self::F16,
            WeightType::F16 | WeightType::Floats => Self::Floats,
        }
    }

    /// Returns whether packing rounds weights.
    pub fn rounds(self) -> bool {
        self != Self::Floats
    }

    /// Returns the number of f32 words that `cols` columns of `k` weights occupy.
    pub(crate) fn packed_len(self, cols: usize, k: usize) -> usize {
        match self {
            Self::Floats => packed_len(cols, k),
            Self::F16 => f16::packed_len(cols, k),
            Self::Int8 => int8::packed_len(cols, k),
        }
    }

    /// Packs a row-major matrix `[cols, k]` into panels, on all threads.
    pub(crate) fn pack(self, cols: usize, k: usize, data: &[f32]) -> Vec<f32> {
        match self {
            Self::Floats => pack_matrix(cols, k, data),
            Self::F16 => f16::pack_matrix(cols, k, data),
            Self::Int8 => int8::pack_matrix(cols, k, data),
        }
    }
}

/// A matrix of weights `[cols, k]`, packed into panels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    words: &'a [f32],
    format: Format,
    k: usize,
    cols: usize,
}

/// One panel of a matrix.
#[derive(Clone, Copy, Debug)]
struct Panel<'a> {
    values: Values<'a>,
    /// Columns, padding included.
    width: usize,
    /// Columns of the matrix.
    cols: usize,
    /// Weights of a column.
    k: usize,
}

/// The weights of one panel.
#[derive(Clone, Copy, Debug)]
enum Values<'a> {
    Floats {
        /// `[width / grain, k, grain]`
        panel: &'a [f32],
        /// The values that are probably read after this panel: they are prefetched meanwhile.
        next: &'a [f32],
    },
    /// Widened to floats before they are multiplied.
    Narrow(Narrow<'a>),
}

impl<'a> Panels<'a> {
    /// Wraps a weight operand of a kernel, which lies in panels ([`Layout::Panels`](crate::Layout::Panels)).
    ///
    /// The CPU form of a kernel is not told the format of an operand, so the length decides. It is unambiguous:
    /// `cols * k` floats and `cols + cols * k / 4` words are equally many only for a `k` of 4/3, and where the latter are
    /// as many as `cols * k / 2` halves, halves are [not used](f16::takes).
    ///
    /// # Panics
    /// If `words` has none of these lengths, which is a bug of the calling kernel.
    pub(crate) fn new(words: &'a [f32], cols: usize, k: usize) -> Self {
        let narrow = [Format::Int8, Format::F16].into_iter().find(|narrow| words.len() == narrow.packed_len(cols, k));
        narrow.map_or_else(|| Self::floats(words, cols, k), |format| Self { words, format, k, cols })
    }

    /// Wraps panels of floats.
    ///
    /// # Panics
    /// If `values` has another length than [`packed_len`], which is a bug of the calling kernel.
    pub(crate) fn floats(values: &'a [f32], cols: usize, k: usize) -> Self {
        let len = values.len();
        assert_eq!(len, packed_len(cols, k), "{len} values are no {cols} columns of {k} weights as panels");
        Self { words: values, format: Format::Floats, k, cols }
    }

    /// Returns the number of panels.
    fn count(self) -> usize {
        self.cols.div_ceil(PANEL)
    }

    /// Returns panel `index`. Panel `next` is the one that is probably read after it.
    fn panel(self, index: usize, next: usize) -> Panel<'a> {
        let first = index * PANEL;
        let width = PANEL.min(self.cols.next_multiple_of(STEP) - first);
        let len = |cols: usize| self.format.packed_len(cols, self.k);
        let panel = &self.words[index * len(PANEL)..][..len(width)];
        let values = match self.format {
            Format::Floats => Values::Floats { panel, next: &self.words[(next * len(PANEL)).min(self.words.len())..] },
            Format::F16 => Values::Narrow(Narrow::F16(f16::Halves::new(panel))),
            Format::Int8 => Values::Narrow(Narrow::Int8(int8::Int8::new(panel, width))),
        };
        Panel { values, width, cols: PANEL.min(self.cols - first), k: self.k }
    }
}

/// The weights of a panel in fewer bits than a float has.
#[derive(Clone, Copy, Debug)]
enum Narrow<'a> {
    F16(f16::Halves<'a>),
    Int8(int8::Int8<'a>),
}

impl Narrow<'_> {
    /// Widens the weights at positions `part` of the panel's `depth` to floats, `[width / grain, part.len(), grain]`, in
    /// memory that every thread keeps, and calls `take` with them.
    fn widened(self, grain: usize, depth: usize, part: Range<usize>, take: impl FnOnce(&[f32])) {
        thread_local! {
            static FLOATS: RefCell<Aligned> = RefCell::default();
        }
        let weights = match self {
            Self::F16(panel) => panel.len(),
            Self::Int8(panel) => panel.len(),
        };
        FLOATS.with_borrow_mut(|floats| {
            let len = weights / depth * part.len();
            floats.grow_to(len);
            let grains = floats[..len].chunks_exact_mut(grain * part.len());
            match self {
                Self::F16(panel) => panel.widen(grains, grain * depth, grain * part.start..grain * part.end),
                Self::Int8(panel) => panel.widen(grains, grain * depth, grain * part.start..grain * part.end),
            }
            take(&floats[..len]);
        });
    }
}

/// The left factor of a product: rows that are read where they lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    values: &'a [f32],
    rows: usize,
    /// Values from the beginning of one row to that of the next.
    stride: usize,
}

impl<'a> Left<'a> {
    /// Wraps `rows` rows that begin `stride` values apart.
    pub(crate) fn new(values: &'a [f32], rows: usize, stride: usize) -> Self {
        Self { values, rows, stride }
    }

    /// Returns some of the rows.
    fn slice_rows(self, rows: &Range<usize>) -> Self {
        Self { values: &self.values[rows.start * self.stride..], rows: rows.len(), stride: self.stride }
    }

    /// Returns the rows without the first `k` values of each.
    #[inline(always)]
    fn skip_k(self, k: usize) -> Self {
        Self { values: &self.values[k..], ..self }
    }
}
