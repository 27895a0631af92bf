//! `row_moments = (mean, variance)` of every row over every block of 32 channels: the first half of the statistics of a
//! LayerNorm (arXiv 1607.06450), which a consumer merges as it reads the row.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, c]` | |
//! | `row_moments` | `[rows, 2, blocks]` | f32, written: means, then biased variances |
//!
//! A row has `blocks = ceil(c / 32)` blocks, the last of which may be shorter. A workgroup that computes a tile of a
//! product has whole blocks of its rows in registers, so a product can write the moments of its own output in its
//! epilogue, and no step of its own is left of a LayerNorm.
//!
//! * GPU: one workgroup of 256 invocations per 64 rows and 64 channels, which are two blocks (`shaders/common/block_moments.wgsl`).
//! * CPU: tasks of about 64 KiB of rows, in loops that are vectorised for the processor.

use crate::draw::Draw;
use crate::fold::{EpilogueOffer, EpilogueOp};
use crate::kernel::{Case, Cost, DType, Family, Fill, Kernel, Operand, Param, Program, Tolerance, parse};
use crate::names;
use crate::rows::{for_rows, row_cases, row_shapes};
use crate::tile::{TILE, UNSTAGED};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Number of channels of a block. A tile of a product that writes moments has whole blocks.
pub(crate) const BLOCK: usize = 32;

/// Row moments of a matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowMoments {
    /// Rows: tokens of all images.
    pub rows: usize,
    /// Features.
    pub c: usize,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "row_moments",
    summary: "mean and variance of every row over every block of 32 channels",
    cases,
    model_shapes: || row_shapes(|rows, c| RowMoments { rows, c }),
    random,
    parse: parse::<RowMoments>,
};

/// Returns the shape of the moments of `rows` rows of `c` channels.
pub(crate) fn shape(rows: usize, c: usize) -> [usize; 3] {
    [rows, 2, c.div_ceil(BLOCK)]
}

/// Returns the operand `row_moments`. Kernels that write a matrix can write it as a further output.
pub(crate) fn operand(rows: usize, c: usize) -> Operand {
    Operand::write(names::ROW_MOMENTS, shape(rows, c)).dtype(DType::F32)
}

/// Computes the moments of the rows of `x [rows, c]` on the CPU.
pub(crate) fn write_all(c: usize, x: &[f32], moments: &mut [f32]) {
    let blocks = c.div_ceil(BLOCK);
    for_rows(
        (x, c),
        (moments, 2 * blocks),
        #[inline(always)]
        |x, moments| {
            let (means, variances) = moments.split_at_mut(blocks);
            for ((mean, variance), x) in means.iter_mut().zip(variances).zip(x.chunks(BLOCK)) {
                (*mean, *variance) = block_moments(x);
            }
        },
    );
}

/// Returns mean and variance of a block. The mean is the first value plus the mean of the differences from it, so that
/// large values lose no digits.
#[inline(always)]
fn block_moments(x: &[f32]) -> (f32, f32) {
    // A full block is an array, whose loops have constant bounds and become a few vector instructions.
    if let Ok(x) = <&[f32; BLOCK]>::try_from(x) {
        let mean = x[0] + total(x, |v| v - x[0]) / BLOCK as f32;
        return (mean, total(x, |v| (v - mean) * (v - mean)) / BLOCK as f32);
    }
    let count = x.len() as f32;
    let mean = x[0] + x.iter().map(|v| v - x[0]).sum::<f32>() / count;
    (mean, x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / count)
}

/// Returns the sum of `f` over a full block, in eight partial sums.
#[inline(always)]
fn total(x: &[f32; BLOCK], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; 8];
    for first in [0, 8, 16, 24] {
        for lane in 0..8 {
            sums[lane] += f(x[first + lane]);
        }
    }
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
}

/// Returns mean and reciprocal deviation of a row of `c` channels, merged from its moments, `[2, blocks]`, in f64.
pub(crate) fn merged(c: usize, moments: &[f32], eps: f32) -> (f32, f32) {
    let (means, variances) = moments.split_at(c.div_ceil(BLOCK));
    let count = |block: usize| BLOCK.min(c - block * BLOCK) as f64;
    let blocks = || means.iter().zip(variances).enumerate();
    let mean = blocks().map(|(block, (mean, _))| count(block) * f64::from(*mean)).sum::<f64>() / c as f64;
    let squares = |block, own: f32, variance: f32| {
        count(block) * (f64::from(variance) + (f64::from(own) - mean) * (f64::from(own) - mean))
    };
    let variance = blocks().map(|(block, (own, variance))| squares(block, *own, *variance)).sum::<f64>() / c as f64;
    (mean as f32, (1.0 / (variance + f64::from(eps)).sqrt()) as f32)
}

/// Returns the moments of a matrix in f64, by their definition.
pub(crate) fn reference(rows: usize, c: usize, x: &[f64]) -> Vec<f64> {
    let mut moments = Vec::new();
    for row in 0..rows {
        let (mut means, mut variances) = (Vec::new(), Vec::new());
        for first in (0..c).step_by(BLOCK) {
            let block = &x[row * c + first..row * c + c.min(first + BLOCK)];
            let mean = block.iter().sum::<f64>() / block.len() as f64;
            means.push(mean);
            variances.push(block.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / block.len() as f64);
        }
        moments.extend(means);
        moments.extend(variances);
    }
    moments
}

impl Kernel for RowMoments {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read("x", [self.rows, self.c]), operand(self.rows, self.c)]
    }

    fn program(&self, _: &Variant) -> Program {
        Program {
            wgsl: include_str!("../../shaders/row_moments.wgsl"),
            constants: UNSTAGED.constants(),
            params: vec![Param::size("rows", self.rows), Param::size("cols", self.c)],
            grid: UNSTAGED.grid(self.rows, self.c),
        }
    }

    fn cost(&self) -> Cost {
        // A difference, a sum, a square and a sum of squares.
        Cost::elementwise(self.rows * self.c, 4)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(BLOCK)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x] = inputs else { panic!("row_moments reads one operand") };
        vec![reference(self.rows, self.c, x)]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x], [moments]) = (inputs, outputs) else { panic!("row_moments has two operands") };
        write_all(self.c, x, moments);
    }

    fn epilogue_offers(&self) -> Vec<EpilogueOffer> {
        vec![EpilogueOffer { op: EpilogueOp::RowMoments, main: "x", operands: Vec::new() }]
    }
}

fn cases() -> Vec<Case> {
    let moments = |rows, c| Case::new(RowMoments { rows, c });
    let mut cases = row_cases(|rows, c| RowMoments { rows, c });
    cases.extend([
        // One row less than a tile, exactly one tile, one more; likewise for the channels of a block and of a tile.
        moments(63, 31),
        moments(64, 64),
        moments(65, 33),
        // Four blocks, which need no padding, and five.
        moments(3, 128),
        moments(3, 129),
        // Whole numbers in a power of two of channels: exact.
        moments(70, 128).integers(),
    ]);
    cases
}

fn random(draw: &mut Draw<'_>) -> Case {
    let mean = draw.of(&[0.0, 300.0]);
    Case::new(RowMoments { rows: draw.size(TILE), c: draw.channels() }).fill("x", Fill::Normal(mean, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_moments_are_those_of_the_row() {
        // Means of blocks that differ, and a last block of two channels.
        let x: Vec<f32> = (0..130_u16).map(|i| 1000.0 + f32::from(i % 7) + if i < 64 { 50.0 } else { 0.0 }).collect();
        let mut moments = [0.0; 10];
        write_all(130, &x, &mut moments);
        let (mean, rstd) = merged(130, &moments, 1e-5);
        let exact = x.iter().map(|v| f64::from(*v)).sum::<f64>() / 130.0;
        let variance = x.iter().map(|v| (f64::from(*v) - exact).powi(2)).sum::<f64>() / 130.0;
        assert!((f64::from(mean) - exact).abs() < 1e-3, "{mean} is not {exact}");
        assert!((f64::from(rstd) * variance.sqrt() - 1.0).abs() < 1e-5, "{rstd} is not 1 / sqrt({variance})");
    }
}
