//! `y = (x - mean) / sqrt(variance + eps) * weight + bias` for every row: LayerNorm (arXiv 1607.06450), with the biased
//! variance.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, c]` | |
//! | `weight` | `[c]` | |
//! | `bias` | `[c]` | |
//! | `y` | `[rows, c]` | written |
//!
//! The mean is computed twice: first from the values, then from their differences from the first result, which corrects
//! what the first sum lost to rounding when values are far from zero.
//!
//! * GPU: one workgroup of 256 invocations per row.
//! * CPU: tasks of about 64 KiB of rows, in loops that are vectorised for the processor.
//!
//! A consumer that normalises as it reads needs only the moments of every row: [`RowMoments`](crate::RowMoments).

use crate::draw::Draw;
use crate::fold::{OperandSource, PrologueOffer, PrologueOp};
use crate::kernel::{Case, Cost, Family, Fill, Kernel, Operand, Param, Program, Tolerance, folded_grid, parse};
use crate::names;
use crate::prologue::Norm;
use crate::row_moments::RowMoments;
use crate::rows::{for_rows, row_cases, row_shapes, sum};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// LayerNorm of some rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNorm {
    /// Rows: tokens of all images.
    pub rows: usize,
    /// Features.
    pub c: usize,
    /// Epsilon, added to the variance.
    pub eps: f32,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "layer_norm",
    summary: "`(x - mean) / sqrt(variance + eps) * weight + bias` of every row",
    cases: || row_cases(of_rows),
    model_shapes: || row_shapes(of_rows),
    random,
    parse: parse::<LayerNorm>,
};

/// Statistics of a row, whose mean is `near + correction`.
#[derive(Clone, Copy, Debug)]
struct Statistics {
    /// Mean, as a first sum finds it.
    near: f32,
    /// Mean of the differences from `near`: the part that the first sum lost to rounding.
    correction: f32,
    /// Reciprocal deviation, `1 / sqrt(variance + eps)`.
    rstd: f32,
}

/// Returns the statistics of a row.
#[inline(always)]
fn statistics(row: &[f32], eps: f32) -> Statistics {
    let count = row.len() as f32;
    let near = sum(row, |v| v) / count;
    let correction = sum(row, |v| v - near) / count;
    let variance = sum(row, |v| (v - near - correction) * (v - near - correction)) / count;
    Statistics { near, correction, rstd: 1.0 / (variance + eps).sqrt() }
}

impl Kernel for LayerNorm {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("x", [self.rows, self.c]),
            Operand::read("weight", [self.c]),
            Operand::read("bias", [self.c]),
            Operand::write("y", [self.rows, self.c]),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        Program {
            wgsl: include_str!("../../shaders/layer_norm.wgsl"),
            constants: vec![],
            params: vec![Param::size("rows", self.rows), Param::size("c", self.c), Param::F("eps", self.eps)],
            grid: folded_grid(self.rows),
        }
    }

    fn cost(&self) -> Cost {
        // Per value: the mean takes 1, the difference, its mean and the mean of its square take 4, the scaling 4.
        Cost::elementwise(self.rows * self.c, 9)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.c)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, weight, bias] = inputs else { panic!("layer_norm reads three operands") };
        let mut y = Vec::with_capacity(x.len());
        for row in 0..self.rows {
            let (mut sum, mut squares) = (0.0, 0.0);
            for c in 0..self.c {
                sum += x[row * self.c + c];
            }
            let mean = sum / self.c as f64;
            for c in 0..self.c {
                squares += (x[row * self.c + c] - mean).powi(2);
            }
            let deviation = (squares / self.c as f64 + f64::from(self.eps)).sqrt();
            for c in 0..self.c {
                y.push((x[row * self.c + c] - mean) / deviation * weight[c] + bias[c]);
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, weight, bias], [y]) = (inputs, outputs) else { panic!("layer_norm has four operands") };
        for_rows(
            (x, self.c),
            (y, self.c),
            #[inline(always)]
            |x, y| {
                let Statistics { near, correction, rstd } = statistics(x, self.eps);
                for ((y, x), (weight, bias)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                    *y = (x - near - correction) * rstd * weight + bias;
                }
            },
        );
    }

    fn prologue_offer(&self) -> Option<PrologueOffer> {
        let operands = vec![
            (names::STATS, OperandSource::Remainder),
            (names::NORM_WEIGHT, OperandSource::Folded("weight")),
            (names::NORM_BIAS, OperandSource::Folded("bias")),
        ];
        let rest = Box::new(RowMoments { rows: self.rows, c: self.c });
        let op = PrologueOp::Normalise(Norm::Rows { eps: self.eps });
        Some(PrologueOffer { op, main: Some("x"), operands, remainder: Some(rest) })
    }
}

fn of_rows(rows: usize, c: usize) -> LayerNorm {
    LayerNorm { rows, c, eps: 1e-5 }
}

fn random(draw: &mut Draw<'_>) -> Case {
    let c = draw.of(&[1, 4, 7, 33, 320, 1020, 1023, 1024, 1025, 1028]);
    let fill = draw.of(&[Fill::Normal(0.0, 1.0), Fill::Normal(1000.0, 1.0), Fill::Constant(0.1)]);
    Case::new(LayerNorm { rows: draw.of(&[1, 2, 5, 13]), c, eps: draw.of(&[1e-5, 1e-6]) }).fill("x", fill)
}
