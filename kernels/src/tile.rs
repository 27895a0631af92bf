//! Tiles of matrix products on a GPU: the variants of `linear`, `conv2d`, and of the two products from one read of `x`.
//!
//! Which tile is best depends on the shape: a large one moves fewer bytes for every multiplication, a small one keeps a
//! device busy where there are few rows and columns, and so does a workgroup whose invocations or subgroups share the sum
//! over k (`split`). Where even that is too little, workgroups share the sums: each makes those of a part of k, and a second
//! stage adds them (`share`). All of them are `shaders/common/gemm.wgsl` with other constants, or `gemm_matrix.wgsl` beside it where matrix
//! units multiply.

use crate::kernel::{DType, Operand, Program, Stage, elements, folded_grid};
use crate::names;
use crate::prologue::{Norm, Prologue};
use crate::variant::{MatrixUnit, Needs, Variant};

/// Positions that the moments of a map are taken over, see `channel_moments`, and rows and columns of the tile of
/// kernels that have no other.
pub(crate) const TILE: usize = 64;

/// What a workgroup computes at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    name: &'static str,
    /// Rows of one invocation, and its columns in vec4s.
    each: [usize; 2],
    /// Products that share them.
    products: usize,
    /// Invocations along columns and rows, and those that share a sum.
    threads: [usize; 3],
    /// vec4s of k that are staged in workgroup memory at a time; none where every value is read once anyway.
    staged: Option<usize>,
    /// The matrices of its subgroups, if matrix units make the product.
    matrix: Option<Matrix>,
    /// What of the product a dispatch does.
    share: Share,
    /// Multiplications in a given time, beside those of the largest tile, where there are tiles enough: what an
    /// invocation reads of workgroup memory for each, and a workgroup of memory. No measurement: `bench --tune` makes
    /// them, for one device.
    rate: f64,
}

/// What a dispatch does of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// All of it.
    Whole,
    /// The sums over one of so many parts of k for each workgroup. Another dispatch does the rest.
    Part(u32),
    /// That rest: the sums of so many parts are added and written.
    End(u32),
}

/// What so many `k` take, another dispatch takes too. No measurement, see [`Tile::rate`].
const DISPATCH: f64 = 256.0;

/// Operands of a product that its end binds; the others are its start's.
const AT_END: [&str; 5] = [names::BIAS, names::SHIFT, names::RESIDUAL, names::Y, names::MOMENTS];

/// Most bytes of sums that parts leave in memory: more of them come of products that have tiles enough.
const MOST_SUMS: usize = 32 << 20;

/// The matrices of a tile of `shaders/common/gemm_matrix.wgsl`.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    /// Their rows and columns, and what they take of k at a time.
    edge: u32,
    /// Invocations of a subgroup.
    subgroup: u32,
    /// Matrices of a subgroup one above the other, two or four; side by side it has four.
    strips: u32,
    /// Subgroups side by side.
    across: u32,
    /// Subgroups that share a sum.
    split: u32,
    /// Whether they are loaded through pointers to vec4s, which Vulkan has and Metal has not.
    vec4_loads: bool,
}

/// NVIDIA's matrices, Apple's, and those of Mesa's driver, whose subgroups have the width of a CPU's vectors.
const NVIDIA: Matrix = Matrix { edge: 16, subgroup: 32, strips: 2, across: 2, split: 1, vec4_loads: true };
const APPLE: Matrix = Matrix { edge: 8, vec4_loads: false, ..NVIDIA };
const MESA: Matrix = Matrix { edge: 8, subgroup: 8, ..NVIDIA };

const M16: Tile = Tile { staged: Some(8), matrix: Some(NVIDIA), ..WHOLE };
const M16_COLUMN: Tile = Tile { matrix: Some(Matrix { across: 1, ..NVIDIA }), ..M16 };
const M16_TALL: Tile = Tile { matrix: Some(Matrix { strips: 4, ..NVIDIA }), ..M16 };
const M16_LARGE: Tile = Tile { matrix: Some(Matrix { strips: 4, across: 4, ..NVIDIA }), ..M16 };
const M16_SPLIT: Tile = Tile { staged: Some(16), matrix: Some(Matrix { across: 1, split: 4, ..NVIDIA }), ..M16 };
/// Few workgroups of few subgroups wait for memory at every step: twice the subgroups take twice the k in one.
const M16_LONG: Tile = Tile { staged: Some(32), matrix: Some(Matrix { across: 1, split: 8, ..NVIDIA }), ..M16 };
const M16_HALVES: Tile = Tile { staged: Some(16), matrix: Some(Matrix { split: 2, ..NVIDIA }), ..M16 };
const M8: Tile = Tile { matrix: Some(APPLE), ..M16 };
const M8_SPLIT: Tile = Tile { matrix: Some(Matrix { across: 1, split: 4, ..APPLE }), ..M16 };
const M8_CPU: Tile = Tile { matrix: Some(MESA), ..M16 };
/// The forms that no other tile runs on Mesa's driver: scalar pointers, subgroups in one column, four strips, shared sums.
const M8_CPU_NARROW: Tile = Tile { matrix: Some(Matrix { across: 1, vec4_loads: false, ..MESA }), ..M16 };
const M8_CPU_TALL: Tile = Tile { matrix: Some(Matrix { strips: 4, ..MESA }), ..M16 };
const M8_CPU_SPLIT: Tile = Tile { matrix: Some(Matrix { across: 1, split: 4, ..MESA }), ..M16 };

/// One product.
pub(crate) const SINGLE: &[Tile] = &[
    Tile { name: "128x128", each: [8, 2], threads: [16, 16, 1], staged: Some(2), rate: 1.0, ..WHOLE },
    Tile { name: "128x64", each: [8, 1], threads: [16, 16, 1], staged: Some(4), rate: 0.8, ..WHOLE },
    WHOLE,
    Tile { name: "128x16", each: [8, 1], threads: [4, 16, 1], staged: Some(4), rate: 0.4, ..WHOLE },
    Tile { name: "64x32/4", each: [8, 1], threads: [8, 8, 4], staged: Some(8), rate: 0.5, ..WHOLE },
    Tile { name: "32x32/4", each: [4, 1], threads: [8, 8, 4], staged: Some(8), rate: 0.4, ..WHOLE },
    Tile { name: "64x64 in 4", share: Share::Part(4), ..WHOLE },
    Tile { name: "2x16/64", each: [2, 1], threads: [4, 1, 64], staged: None, rate: 0.05, ..WHOLE },
    Tile { name: "m16 128x256 4x4", each: [8, 4], threads: [16, 16, 1], rate: 7.0, ..M16_LARGE },
    Tile { name: "m16 128x128 4x4", each: [8, 4], threads: [8, 16, 1], rate: 6.5, ..M16_TALL },
    Tile { name: "m16 128x128", each: [8, 2], threads: [16, 16, 1], rate: 6.0, ..M16 },
    Tile { name: "m16 64x128", each: [8, 2], threads: [16, 8, 1], rate: 4.5, ..M16 },
    Tile { name: "m16 128x64", each: [8, 2], threads: [8, 16, 1], rate: 4.5, ..M16_COLUMN },
    Tile { name: "m16 64x64", each: [8, 2], threads: [8, 8, 1], rate: 3.0, ..M16_COLUMN },
    Tile { name: "m16 64x64/4", each: [4, 1], threads: [16, 16, 1], rate: 3.5, ..M16_SPLIT },
    Tile { name: "m16 32x64/4", each: [4, 1], threads: [16, 8, 1], rate: 2.5, ..M16_SPLIT },
    Tile { name: "m16 32x64/8", each: [2, 1], threads: [16, 16, 1], rate: 2.8, ..M16_LONG },
    Tile {
        name: "m16 128x128 4x4 in 2",
        each: [8, 4],
        threads: [8, 16, 1],
        rate: 6.5,
        share: Share::Part(2),
        ..M16_TALL
    },
    Tile {
        name: "m16 64x128/2 in 4",
        each: [4, 2],
        threads: [16, 16, 1],
        rate: 5.0,
        share: Share::Part(4),
        ..M16_HALVES
    },
    Tile { name: "m16 64x128 in 4", each: [8, 2], threads: [16, 8, 1], rate: 4.5, share: Share::Part(4), ..M16 },
    Tile { name: "m8 64x64", each: [4, 1], threads: [16, 16, 1], rate: 2.0, ..M8 },
    Tile { name: "m8 64x64 in 4", each: [4, 1], threads: [16, 16, 1], rate: 2.0, share: Share::Part(4), ..M8 },
    Tile { name: "m8 32x64", each: [4, 1], threads: [16, 8, 1], rate: 1.6, ..M8 },
    Tile { name: "m8 16x32/4", each: [1, 1], threads: [8, 16, 1], rate: 0.9, ..M8_SPLIT },
    Tile { name: "m8/8 64x64", each: [8, 2], threads: [8, 8, 1], rate: 0.9, ..M8_CPU },
    Tile { name: "m8/8 64x64 in 4", each: [8, 2], threads: [8, 8, 1], rate: 0.9, share: Share::Part(4), ..M8_CPU },
    Tile { name: "m8/8 64x64 4x4", each: [8, 4], threads: [4, 8, 1], rate: 0.9, ..M8_CPU_TALL },
    Tile { name: "m8/8 64x32", each: [8, 2], threads: [4, 8, 1], rate: 0.8, ..M8_CPU_NARROW },
    Tile { name: "m8/8 64x32/4", each: [4, 1], threads: [8, 16, 1], rate: 0.7, ..M8_CPU_SPLIT },
];

/// Two products of the same rows; columns are those of each.
pub(crate) const PAIR: &[Tile] = &[
    Tile { name: "128x64x2", each: [8, 2], products: 2, threads: [16, 16, 1], staged: Some(2), rate: 1.0, ..WHOLE },
    Tile { name: "64x64x2", each: [4, 2], products: 2, threads: [16, 16, 1], staged: Some(4), rate: 0.8, ..WHOLE },
    Tile { name: "32x32x2/4", each: [4, 2], products: 2, threads: [8, 8, 4], staged: Some(8), rate: 0.5, ..WHOLE },
    Tile { name: "m16 128x64x2", each: [8, 2], products: 2, threads: [16, 16, 1], rate: 6.0, ..M16 },
    Tile { name: "m16 64x64x2", each: [8, 2], products: 2, threads: [16, 8, 1], rate: 4.5, ..M16 },
    Tile { name: "m16 32x32x2/4", each: [2, 2], products: 2, threads: [8, 16, 1], rate: 2.5, ..M16_SPLIT },
    Tile { name: "m8 64x32x2", each: [2, 2], products: 2, threads: [8, 32, 1], rate: 2.0, ..M8 },
    Tile { name: "m8/8 64x32x2", each: [8, 2], products: 2, threads: [8, 8, 1], rate: 0.9, ..M8_CPU },
];

/// 64 rows, 64 columns and a sum for each invocation of its own.
pub(crate) const WHOLE: Tile = Tile {
    name: "64x64",
    each: [4, 1],
    products: 1,
    threads: [16, 16, 1],
    staged: Some(4),
    matrix: None,
    share: Share::Whole,
    rate: 0.6,
};

/// What finishes a product in parts: 64 rows, those of moments, of a few columns, so that there are many of it.
const END: Tile = Tile { name: "end", each: [4, 1], threads: [4, 16, 1], staged: None, ..WHOLE };

impl Tile {
    fn rows(&self) -> usize {
        self.each[0] * self.threads[1]
    }

    /// Columns, of all products together.
    fn cols(&self) -> usize {
        4 * self.each[1] * self.threads[0]
    }

    /// Workgroups for an output of `rows` x `cols`: tiles of columns along x, tiles of rows along y and, beyond what an
    /// axis may have, z.
    pub(crate) fn grid(&self, rows: usize, cols: usize) -> [u32; 3] {
        let [y, z, _] = folded_grid(rows.div_ceil(self.rows()));
        let parts = if let Share::Part(parts) = self.share { parts as usize } else { 1 };
        [u32::try_from(parts * (self.products * cols).div_ceil(self.cols())).expect("sizes are below 2^32"), y, z]
    }

    /// vec4s of workgroup memory where a batch of the sums of matrices lies, each row with a gap behind it; of shared sums
    /// there are as many as subgroups that share them.
    fn batch(&self, matrix: &Matrix) -> usize {
        self.rows() / matrix.strips as usize * ((matrix.across * matrix.edge / 2) as usize + 1)
    }

    /// vec4s of workgroup memory from one vec4 of k of all rows to the next, and from one column of a quad to the next.
    ///
    /// Workgroup memory has eight banks of a vec4. Eight invocations store at a time, `step4` vec4s of k of `8 / step4`
    /// neighbouring rows or columns: with these gaps each goes to a bank of its own.
    fn strides(&self) -> [usize; 2] {
        let (step4, quads) = (self.staged.unwrap_or(8), self.cols() / 4);
        [self.rows() + 8 / step4.min(8), quads + (step4 + 8 - quads % 8) % 8]
    }

    /// vec4s of workgroup memory: a step of rows and columns with their gaps, and one more of each vec4 of k; and one for
    /// every invocation where sums meet.
    fn scratch(&self) -> usize {
        if let Some(matrix) = &self.matrix {
            let threads = self.threads.iter().product();
            return if matrix.vec4_loads { (self.batch(matrix) * matrix.split as usize).max(threads) } else { threads };
        }
        let [row_stride, col_quads] = self.strides();
        let staged = self.staged.map_or(0, |step4| step4 * (row_stride + 4 * col_quads + 1));
        staged.max(self.threads.iter().product())
    }

    /// Switches and sizes of the shader.
    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        let size = |size: usize| u32::try_from(size).expect("a tile is small");
        let [x, y, invocations] = self.threads;
        let [row_stride, col_quads] = self.strides();
        let split = self.matrix.map_or(size(invocations), |matrix| matrix.split);
        let (product, ends, parts) = match self.share {
            Share::Whole => (true, true, 1),
            Share::Part(parts) => (true, false, parts),
            Share::End(parts) => (false, true, parts),
        };
        let mut constants = vec![
            ("PRODUCT", product.into()),
            ("ENDS", ends.into()),
            ("PART", (!ends).into()),
            ("MET", (!product).into()),
            ("PARTS", parts),
            ("IN_PARTS", (parts > 1).into()),
            (names::MATRIX, (product && self.matrix.is_some()).into()),
            ("PLAIN", (product && self.matrix.is_none()).into()),
            ("ROWS_EACH", size(self.each[0])),
            ("QUADS_EACH", size(self.each[1])),
            ("THREADS_X", size(x)),
            ("THREADS_Y", size(y)),
            ("SPLIT", split),
            ("STEP4", size(self.staged.unwrap_or(0))),
            ("SHARED_SUMS", u32::from(split > 1)),
            ("STAGED", u32::from(self.staged.is_some())),
            ("NOT_STAGED", u32::from(self.staged.is_none())),
            ("SCRATCH", size(self.scratch())),
            ("ROW_STRIDE", size(row_stride)),
            ("COL_QUADS", size(col_quads)),
        ];
        if let Some(matrix) = &self.matrix {
            constants.extend([
                ("EDGE", matrix.edge),
                ("EDGE_8", (matrix.edge == 8).into()),
                ("EDGE_16", (matrix.edge == 16).into()),
                ("SUBGROUP", matrix.subgroup),
                ("STRIPS", matrix.strips),
                ("TALL", (matrix.strips == 4).into()),
                ("SUBGROUPS_X", matrix.across),
                ("WIDE", matrix.vec4_loads.into()),
                ("NARROW", (!matrix.vec4_loads).into()),
                ("BATCH", size(self.batch(matrix))),
            ]);
        }
        constants
    }

    /// Matrices ask for their unit, and for room for a step and the sums beside it.
    fn needs(&self) -> Needs {
        let Some(matrix) = &self.matrix else { return Needs::PORTABLE };
        let size = |size: usize| u32::try_from(size).expect("a tile is small");
        let step = (self.rows() + self.cols()) * (self.staged.unwrap_or(0) + 2) * 8;
        let sums = if matrix.vec4_loads { 0 } else { self.batch(matrix) * matrix.split as usize * 16 };
        Needs {
            invocations: size(self.threads.iter().product()),
            workgroup_bytes: size(step + sums + self.scratch() * 16),
            matrix: Some(MatrixUnit { edge: matrix.edge, subgroup: matrix.subgroup }),
        }
    }

    fn variant(&self, [rows, k, cols]: [usize; 3], prologue: &Prologue) -> Variant {
        let mut groups = rows.div_ceil(self.rows()) * (self.products * cols).div_ceil(self.cols());
        let mut work = (self.rows() * self.cols()) as f64 / self.rate;
        if let Share::Part(parts) = self.share {
            groups *= parts as usize;
            work *= 1.0 / f64::from(parts) + DISPATCH / k as f64;
        }
        let rounds = self.matrix.is_some() && prologue.norm != Norm::None;
        Variant { name: self.name, needs: self.needs(), groups, work, rounds }
    }
}

/// The variants of a product of `rows` x `k` by `k` x `cols`. Moments are those of whole tiles of 64 rows, and matrix units
/// would round what is read as f32 on purpose.
pub(crate) fn variants(tiles: &[Tile], sizes: [usize; 3], prologue: &Prologue, moments: bool) -> Vec<Variant> {
    let [rows, _, cols] = sizes;
    let few = |tile: &Tile| match tile.share {
        Share::Part(parts) => 4 * elements(&sums(parts, [rows, cols]).device_shape()) <= MOST_SUMS,
        _ => true,
    };
    let fit = tiles.iter().filter(|tile| !moments || tile.rows().is_multiple_of(TILE));
    let fit = fit.filter(|tile| tile.matrix.is_none() || !prologue.f32_input).filter(|tile| few(tile));
    fit.map(|tile| tile.variant(sizes, prologue)).collect()
}

/// What parts leave for the end.
fn sums(parts: u32, [rows, cols]: [usize; 2]) -> Operand {
    Operand::write(names::PARTS, [parts as usize, rows, cols]).dtype(DType::F32)
}

/// The dispatches of a product of `rows` x `cols` by a tile, with these operands and the program of a tile.
pub(crate) fn stages(
    tile: Tile,
    operands: Vec<Operand>,
    size: [usize; 2],
    program: impl Fn(&Tile) -> Program,
) -> Vec<Stage> {
    let Share::Part(parts) = tile.share else { return vec![Stage { program: program(&tile), operands }] };
    let stage = |tile: &Tile, ends: bool| {
        let bound = operands.iter().cloned().map(|operand| {
            let present = operand.present && AT_END.contains(&operand.name) == ends;
            operand.optional(present)
        });
        Stage { program: program(tile), operands: bound.chain([sums(parts, size)]).collect() }
    };
    vec![stage(&tile, false), stage(&Tile { share: Share::End(parts), ..END }, true)]
}

/// The tile of a variant.
///
/// # Panics
/// If the variant is another kernel's.
pub(crate) fn of(tiles: &[Tile], variant: &Variant) -> Tile {
    *tiles.iter().find(|tile| tile.name == variant.name).expect("a variant is one of the kernel's own")
}

#[cfg(test)]
mod tests;
