//! Tiles of matrix products on a GPU: the variants of `linear`, `conv2d` and `swish_glu`.
//!
//! The best tile depends on the shape. A large tile moves fewer bytes for every multiplication. A small tile keeps a
//! device busy where there are few rows and columns, and so does a workgroup whose invocations or subgroups share the
//! sum over k (`split`). Where even that gives too few workgroups, workgroups share the sums: each computes the sums
//! over a part of k, and a second stage adds them (`share`, known as split-k). All tiles are
//! `shaders/common/gemm.wgsl`, `gemm_matrix.wgsl` for tiles that use matrix units, or `gemm_winograd.wgsl` for blocks
//! of a convolution, with different constants.

mod end;
mod table;

pub(crate) use self::end::ProductEnd;
pub(crate) use self::table::{BLOCKS, PAIR, SINGLE, UNSTAGED};

use self::table::{END, END_OF_ROWS};
use crate::kernel::{DType, Operand, Program, Stage, folded_grid};
use crate::names;
use crate::prologue::{Norm, Prologue};
use crate::row_moments::BLOCK;
use crate::storage::Storage;
use crate::variant::{MatrixUnit, Needs, Variant};
use mobilediffusion_runtime::Caps;
use serde::{Deserialize, Serialize};

/// Number of positions that one entry of the moments covers, see `channel_moments`. Also the number of rows and columns
/// of the tile of kernels that have only one.
pub(crate) const TILE: usize = 64;

/// Part of a product that one workgroup computes, and the way it does so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    name: &'static str,
    /// Rows that one invocation computes, and its columns in vec4s.
    each: [usize; 2],
    /// Number of products of the same rows that the tile computes.
    products: usize,
    /// Invocations along the columns, along the rows, and along k: those that share a sum.
    threads: [usize; 3],
    /// Number of vec4s along k that are staged in workgroup memory at a time. `None` where every value is read only
    /// once and staging gains nothing.
    staged: Option<usize>,
    /// What multiplies.
    by: By,
    /// Share of the product that the dispatch computes.
    share: Share,
    /// See [`Variant::slots`].
    slots: usize,
    /// Relative multiplication rate, compared with the largest tile of registers, where there are enough tiles to fill
    /// a device. Derived from the reads of workgroup memory and of global memory per multiplication, not measured;
    /// `bench --tune` measures a device.
    rate: f64,
}

/// What computes the sums of a tile.
#[derive(Clone, Copy, Debug)]
enum By {
    /// Invocations, each of which keeps its sums in registers: `shaders/common/gemm.wgsl`.
    Registers,
    /// Matrix units, arranged like this: `shaders/common/gemm_matrix.wgsl`.
    Matrices(Matrix),
    /// Winograd's algorithm; the tile is a block of a convolution: `shaders/common/gemm_winograd.wgsl`.
    Winograd,
}

/// Share of a product that one dispatch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// The whole product.
    Whole,
    /// Partial sums: k is split into this many parts, and each workgroup computes the sums over one of them.
    Part(u32),
    /// End of a split product: adds the sums of this many parts, applies the epilogue and writes the output.
    End(u32),
}

/// Sizes of a matrix product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) cols: usize,
    /// Number of products of these sizes, which one dispatch computes side by side. A convolution may have several.
    pub(crate) phases: usize,
}

/// Moments that a product writes of its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    /// No moments.
    #[default]
    None,
    /// Moments of channels, see [`ChannelMoments`](crate::ChannelMoments).
    Channels,
    /// Moments of rows, see [`RowMoments`](crate::RowMoments).
    Rows,
}

impl Moments {
    /// Returns the moments of channels if they are `written`.
    pub(crate) fn of_channels(written: bool) -> Self {
        if written { Self::Channels } else { Self::None }
    }
}

/// Number of vec4s of workgroup memory of `shaders/common/gemm_winograd.wgsl`: 16 elements of 32 squares and of 32
/// columns.
const WINOGRAD_SCRATCH: usize = 16 * (32 + 32);

/// Cost of the second dispatch of a split product, in steps of k. An estimate, see [`Tile::rate`].
const DISPATCH: f64 = 256.0;

/// Operands that the end of a split product binds. The first stage binds all others.
const AT_END: [&str; 6] = [names::BIAS, names::SHIFT, names::RESIDUAL, names::Y, names::MOMENTS, names::ROW_MOMENTS];

/// Cost of the end of a block, where products are exchanged and become outputs, in steps of k. An estimate from 8 input
/// channels on a software driver, see [`Tile::rate`].
const EXCHANGE: f64 = 48.0;

/// Largest number of bytes of partial sums. Products that would have more also have enough tiles without a split.
const MOST_SUMS: usize = 32 << 20;

/// Arrangement of matrices in a tile of `shaders/common/gemm_matrix.wgsl`.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    /// Rows and columns of a matrix, and the number of k that one multiplication covers.
    edge: u32,
    /// Number of invocations in a subgroup.
    subgroup: u32,
    /// Number of matrices of a subgroup along the rows: two or four. Along the columns it has four.
    strips: u32,
    /// Number of subgroups along the columns.
    across: u32,
    /// Number of subgroups that share a sum.
    split: u32,
    /// Whether matrices are loaded through pointers to vec4s. Vulkan supports these, Metal does not.
    vec4_loads: bool,
}

impl Tile {
    fn rows(&self) -> usize {
        self.each[0] * self.threads[1]
    }

    /// Number of columns, of all products together.
    fn cols(&self) -> usize {
        4 * self.each[1] * self.threads[0]
    }

    /// Whether this is a block of a convolution.
    pub(crate) fn is_block(&self) -> bool {
        matches!(self.by, By::Winograd)
    }

    /// Returns the arrangement of matrices if matrix units compute the product.
    fn matrix(&self) -> Option<&Matrix> {
        if let By::Matrices(matrix) = &self.by { Some(matrix) } else { None }
    }

    /// Whether tiles never cross from one image of so many `positions` into the next.
    pub(crate) fn divides(&self, positions: usize) -> bool {
        positions.is_multiple_of(self.rows())
    }

    /// Whether the shader can write `moments` of such a tile: it has whole tiles of positions, or whole blocks of
    /// columns and an even number of rows for every invocation.
    fn writes(&self, moments: Moments) -> bool {
        match moments {
            Moments::None => true,
            Moments::Channels => self.rows().is_multiple_of(TILE),
            Moments::Rows => self.cols().is_multiple_of(BLOCK) && self.each[0].is_multiple_of(2),
        }
    }

    /// Returns the grid of workgroups for an output of `rows` x `cols`. Tiles of columns lie along x, tiles of rows
    /// along y and, beyond the limit of an axis, z.
    pub(crate) fn grid(&self, rows: usize, cols: usize) -> [u32; 3] {
        self.grid_of(Sizes { rows, k: 1, cols, phases: 1 })
    }

    /// Returns the grid of workgroups of a product. Along x are the tiles of columns of the first phase, then those of
    /// the next; if the tile splits k, all of these for the first part, then for the next.
    pub(crate) fn grid_of(&self, Sizes { rows, cols, phases, .. }: Sizes) -> [u32; 3] {
        let [y, z, _] = folded_grid(rows.div_ceil(self.rows()));
        let parts = if let Share::Part(parts) = self.share { parts as usize } else { 1 };
        let x = parts * phases * (self.products * cols).div_ceil(self.cols());
        [u32::try_from(x).expect("sizes are below 2^32"), y, z]
    }

    /// Whether every WebGPU device accepts the grids of the tile, and of the second stage if the tile splits k. Axes y
    /// and z are folded, and x is not.
    fn is_accepted(&self, sizes: Sizes, moments: Moments) -> bool {
        let end = if moments == Moments::Rows { END_OF_ROWS } else { END };
        let ends = matches!(self.share, Share::Part(_)).then_some(&end);
        [self].into_iter().chain(ends).all(|tile| tile.grid_of(sizes)[0] <= Caps::PORTABLE.max_groups)
    }

    /// Number of vec4s of workgroup memory for one batch of the sums of matrices, with a gap after each row. Shared
    /// sums need one batch for each subgroup that shares them.
    fn batch(&self, matrix: &Matrix) -> usize {
        self.rows() / matrix.strips as usize * ((matrix.across * matrix.edge / 2 + matrix.edge / 8) as usize)
    }

    /// Strides in workgroup memory, in vec4s: from one vec4 of k of all rows to the next, and from one column of a quad
    /// to the next.
    ///
    /// Workgroup memory has eight banks of one vec4. Eight invocations store at a time: `step4` vec4s of k of `8 /
    /// step4` neighbouring rows or columns. With these strides, each of them stores to a different bank.
    fn strides(&self) -> [usize; 2] {
        let (step4, quads) = (self.staged.unwrap_or(8), self.cols() / 4);
        [self.rows() + 8 / step4.min(8), quads + (step4 + 8 - quads % 8) % 8]
    }

    /// Number of vec4s of workgroup memory that the shader declares: one step of rows and columns with their gaps and
    /// one more vec4 for each vec4 of k, and at least one for every invocation, where sums are exchanged, and for every
    /// row, where statistics are. Blocks of a convolution have transformed inputs and weights there.
    fn scratch(&self) -> usize {
        let least = self.rows().max(self.threads.iter().product());
        match &self.by {
            By::Registers => {
                let [row_stride, col_quads] = self.strides();
                self.staged.map_or(0, |step4| step4 * (row_stride + 4 * col_quads + 1)).max(least)
            }
            By::Matrices(matrix) if matrix.vec4_loads => (self.batch(matrix) * matrix.split as usize).max(least),
            By::Matrices(_) => least,
            By::Winograd => WINOGRAD_SCRATCH,
        }
    }

    /// Returns the switches and sizes that the shader takes as constants.
    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        let size = |size: usize| u32::try_from(size).expect("a tile is small");
        let [x, y, invocations] = self.threads;
        let [row_stride, col_quads] = self.strides();
        let split = self.matrix().map_or(size(invocations), |matrix| matrix.split);
        let (product, ends, parts) = match self.share {
            Share::Whole => (true, true, 1),
            Share::Part(parts) => (true, false, parts),
            Share::End(parts) => (false, true, parts),
        };
        let mut constants = vec![
            ("PRODUCT", product.into()),
            ("ENDS", ends.into()),
            ("PARTS", parts),
            ("IN_PARTS", (parts > 1).into()),
            (names::MATRIX, self.matrix().is_some().into()),
            (names::WINOGRAD, self.is_block().into()),
            ("ROWS_EACH", size(self.each[0])),
            ("QUADS_EACH", size(self.each[1])),
            ("THREADS_X", size(x)),
            ("THREADS_Y", size(y)),
            ("SPLIT", split),
            ("STEP4", size(self.staged.unwrap_or(0))),
            ("SHARED_SUMS", u32::from(split > 1)),
            ("STAGED", u32::from(self.staged.is_some())),
            ("SCRATCH", size(self.scratch())),
            ("ROW_STRIDE", size(row_stride)),
            ("COL_QUADS", size(col_quads)),
        ];
        if let Some(matrix) = self.matrix() {
            constants.extend([
                ("EDGE", matrix.edge),
                ("EDGE_8", (matrix.edge == 8).into()),
                ("SUBGROUP", matrix.subgroup),
                ("STRIPS", matrix.strips),
                ("TALL", (matrix.strips == 4).into()),
                ("SUBGROUPS_X", matrix.across),
                ("WIDE", matrix.vec4_loads.into()),
                ("BATCH", size(self.batch(matrix))),
            ]);
        }
        constants
    }

    /// Returns the needs of the tile. With matrices these are the matrix unit, and workgroup memory for a step and the
    /// sums.
    fn needs(&self) -> Needs {
        let Some(matrix) = self.matrix() else { return Needs::PORTABLE };
        let size = |size: usize| u32::try_from(size).expect("a tile is small");
        let step = (self.rows() + self.cols()) * (self.staged.unwrap_or(0) + 2) * 8;
        let sums = if matrix.vec4_loads { 0 } else { self.batch(matrix) * matrix.split as usize * 16 };
        Needs {
            invocations: size(self.threads.iter().product()),
            workgroup_bytes: size(step + sums + self.scratch() * 16),
            matrix: Some(MatrixUnit { edge: matrix.edge, subgroup: matrix.subgroup }),
        }
    }

    fn variant(&self, Sizes { rows, k, cols, phases }: Sizes, prologue: &Prologue) -> Variant {
        let mut groups = rows.div_ceil(self.rows()) * phases * (self.products * cols).div_ceil(self.cols());
        let mut work = (self.rows() * self.cols()) as f64 / self.rate;
        if let Share::Part(parts) = self.share {
            groups *= parts as usize;
            work *= 1.0 / f64::from(parts) + DISPATCH / k as f64;
        }
        if self.is_block() {
            work *= 1.0 + EXCHANGE / k as f64;
        }
        let rounds = self.matrix().is_some() && prologue.norm != Norm::None;
        let (needs, registers) = (self.needs(), self.registers());
        Variant { name: self.name, needs, groups, slots: self.slots, registers, work, rounds }
    }

    /// See [`Variant::registers`].
    fn registers(&self) -> usize {
        let [rows, quads] = self.each;
        if self.is_block() {
            // Four vec4s of sums for each output, eight vec4s of columns, eight loads of pixels and nine of weights.
            return 4 * (4 * rows * quads + 8 + 8 + 9);
        }
        let staged = (self.rows() + self.cols()) * self.staged.unwrap_or(0);
        4 * (rows * quads + staged.div_ceil(self.threads.iter().product()))
    }
}

/// Returns the variants of a product that write `moments`. Matrix units are left out if the input is f32 on purpose,
/// because they would round it to f16.
pub(crate) fn variants(tiles: &[Tile], sizes: Sizes, prologue: &Prologue, moments: Moments) -> Vec<Variant> {
    let accepted = |tile: &&Tile| tile.is_accepted(sizes, moments);
    let few = |tile: &Tile| match tile.share {
        Share::Part(parts) => sums(parts, sizes).bytes(Storage::F32) <= MOST_SUMS,
        _ => true,
    };
    let fit = tiles.iter().filter(|tile| tile.writes(moments));
    let fit = fit.filter(|tile| tile.matrix().is_none() || !prologue.f32_input).filter(|tile| few(tile));
    let fit: Vec<&Tile> = fit.collect();
    // A device refuses a product that is too wide for all tiles, by name and with both numbers.
    let any = fit.iter().any(accepted);
    fit.into_iter().filter(|tile| !any || accepted(tile)).map(|tile| tile.variant(sizes, prologue)).collect()
}

/// Returns the operand that holds the partial sums of a split product.
fn sums(parts: u32, Sizes { rows, cols, phases, .. }: Sizes) -> Operand {
    Operand::write(names::PARTS, [parts as usize, rows, phases, cols]).dtype(DType::F32)
}

/// Returns the stages of a product: one, or two if the tile splits k. `program` returns the program of a tile.
pub(crate) fn stages(
    tile: Tile,
    operands: Vec<Operand>,
    sizes: Sizes,
    program: impl Fn(&Tile) -> Program,
) -> Vec<Stage> {
    let Share::Part(parts) = tile.share else { return vec![Stage { program: program(&tile), operands }] };
    let stage = |tile: &Tile, ends: bool| {
        let bound = operands.iter().cloned().map(|operand| {
            let present = operand.present && AT_END.contains(&operand.name) == ends;
            operand.optional(present)
        });
        Stage { program: program(tile), operands: bound.chain([sums(parts, sizes)]).collect() }
    };
    let by_rows = operands.iter().any(|operand| operand.present && operand.name == names::ROW_MOMENTS);
    let end = if by_rows { END_OF_ROWS } else { END };
    vec![stage(&tile, false), stage(&Tile { share: Share::End(parts), ..end }, true)]
}

/// Returns the tile of a variant.
///
/// # Panics
/// If the variant belongs to another kernel.
pub(crate) fn of<'a>(tiles: impl IntoIterator<Item = &'a Tile>, variant: &Variant) -> Tile {
    *tiles.into_iter().find(|tile| tile.name == variant.name).expect("a variant is one of the kernel's own")
}

#[cfg(test)]
mod tests;
