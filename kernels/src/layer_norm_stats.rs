//! `stats = (mean, 1 / sqrt(variance + eps))` of every row: the statistics of a LayerNorm (arXiv 1607.06450) for a
//! consumer that normalises as it reads. The variance is the biased one.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, c]` | |
//! | `stats` | `[rows, 2]` | f32, written: mean, reciprocal deviation |
//!
//! * GPU: one workgroup of 256 invocations per row (`shaders/common/row_moments.wgsl`, shared with `layer_norm`).
//! * CPU: tasks of about 64 KiB of rows, with the sums of `layer_norm`.

use crate::cpu::{rows_per_task, with_simd};
use crate::draw::Draw;
use crate::kernel::{Case, Cost, DType, Family, Fill, Kernel, Operand, Param, Program, Tolerance, folded_grid, parse};
use crate::layer_norm::{RowMoments, row_cases, row_moments, row_shapes};
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// LayerNorm statistics of some rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNormStats {
    /// Rows: tokens of all images.
    pub rows: usize,
    /// Features.
    pub c: usize,
    /// Epsilon, added to the variance.
    pub eps: f32,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "layer_norm_stats",
    summary: "mean and reciprocal deviation of every row",
    cases: || row_cases(of_rows),
    model_shapes: || row_shapes(of_rows),
    random,
    parse: parse::<LayerNormStats>,
};

impl Kernel for LayerNormStats {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read("x", [self.rows, self.c]), Operand::write("stats", [self.rows, 2]).dtype(DType::F32)]
    }

    fn program(&self, _: &Variant) -> Program {
        Program {
            wgsl: include_str!("../../shaders/layer_norm_stats.wgsl"),
            constants: vec![],
            params: vec![Param::size("rows", self.rows), Param::size("c", self.c), Param::F("eps", self.eps)],
            grid: folded_grid(self.rows),
        }
    }

    fn cost(&self) -> Cost {
        // Per value: the mean takes 1, the difference, its mean and the mean of its square take 4.
        Cost::elementwise(self.rows * self.c, 5)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.c)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x] = inputs else { panic!("layer_norm_stats reads one operand") };
        let mut stats = Vec::with_capacity(2 * self.rows);
        for row in 0..self.rows {
            let (mut sum, mut squares) = (0.0, 0.0);
            for c in 0..self.c {
                sum += x[row * self.c + c];
            }
            let mean = sum / self.c as f64;
            for c in 0..self.c {
                squares += (x[row * self.c + c] - mean).powi(2);
            }
            stats.extend([mean, 1.0 / (squares / self.c as f64 + f64::from(self.eps)).sqrt()]);
        }
        vec![stats]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x], [stats]) = (inputs, outputs) else { panic!("layer_norm_stats has two operands") };
        let rows = rows_per_task(self.c);
        stats.par_chunks_mut(2 * rows).zip(x.par_chunks(rows * self.c)).for_each(|(stats, x)| {
            with_simd(
                #[inline(always)]
                || {
                    for (stats, x) in stats.chunks_exact_mut(2).zip(x.chunks_exact(self.c)) {
                        let RowMoments { near, correction, rstd } = row_moments(x, self.eps);
                        stats.copy_from_slice(&[near + correction, rstd]);
                    }
                },
            );
        });
    }
}

fn of_rows(rows: usize, c: usize) -> LayerNormStats {
    LayerNormStats { rows, c, eps: 1e-5 }
}

fn random(draw: &mut Draw<'_>) -> Case {
    let mean = draw.of(&[0.0, 300.0]);
    Case::new(LayerNormStats { rows: draw.size(4), c: draw.channels(), eps: 1e-5 }).fill("x", Fill::Normal(mean, 1.0))
}
