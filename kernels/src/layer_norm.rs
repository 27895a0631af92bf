//! `y = (x - mean) / sqrt(variance + eps) * weight + bias` of every row; the variance is the biased one.
//!
//! `x` and `y [rows, c]`, `weight` and `bias [c]`. Two passes: the mean, then the differences from it, whose own mean
//! corrects what the first lost to rounding far from zero. On the GPU a workgroup takes one row; on the CPU a task takes
//! some rows.

use crate::cpu::{rows_per_task, with_simd};
use crate::draw::Draw;
use crate::fold::{OperandSource, PrologueOffer, PrologueOp};
use crate::kernel::{Case, Cost, Family, Fill, Kernel, Operand, Param, Program, Tolerance, folded_grid, parse};
use crate::layer_norm_stats::LayerNormStats;
use crate::names;
use crate::prologue::Norm;
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The normalisation of some rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNorm {
    /// Rows: tokens of all images.
    pub rows: usize,
    /// Features.
    pub c: usize,
    /// Added to the variance.
    pub eps: f32,
}

/// The line of the list.
pub(crate) const FAMILY: Family = Family {
    name: "layer_norm",
    summary: "`(x - mean) / sqrt(variance + eps) * weight + bias` of every row",
    cases: || row_cases(of_rows),
    model_shapes: || row_shapes(of_rows),
    random,
    parse: parse::<LayerNorm>,
};

/// The sum of `f` over a row, in lanes, so that it vectorises and stays accurate.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 32];
    let chunks = row.chunks_exact(32);
    let rest = chunks.remainder().iter().map(|v| f(*v)).sum::<f32>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane += f(*v));
    }
    rest + lanes.iter().sum::<f32>()
}

/// The mean in two parts, what a first sum finds and what that lost to rounding, and the reciprocal deviation.
#[inline(always)]
pub(crate) fn row_moments(row: &[f32], eps: f32) -> (f32, f32, f32) {
    let count = row.len() as f32;
    let near = sum(row, |v| v) / count;
    let correction = sum(row, |v| v - near) / count;
    let variance = sum(row, |v| (v - near - correction) * (v - near - correction)) / count;
    (near, correction, 1.0 / (variance + eps).sqrt())
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
        // The mean; the difference, its mean and its square's; the scaling.
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
        let block = rows_per_task(self.c) * self.c;
        y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| {
            with_simd(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(self.c).zip(x.chunks_exact(self.c)) {
                        let (near, correction, rstd) = row_moments(x, self.eps);
                        for ((y, x), (weight, bias)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                            *y = (x - near - correction) * rstd * weight + bias;
                        }
                    }
                },
            );
        });
    }

    fn prologue_offer(&self) -> Option<PrologueOffer> {
        let operands = vec![
            (names::STATS, OperandSource::Remainder),
            (names::NORM_WEIGHT, OperandSource::Folded("weight")),
            (names::NORM_BIAS, OperandSource::Folded("bias")),
        ];
        let rest = Box::new(LayerNormStats { rows: self.rows, c: self.c, eps: self.eps });
        Some(PrologueOffer { op: PrologueOp::Normalise(Norm::Rows), main: Some("x"), operands, remainder: Some(rest) })
    }
}

/// Cases of what is computed for every row of a length, by a kernel that `of` makes of their number and length.
pub(crate) fn row_cases<K: Kernel + 'static>(of: impl Fn(usize, usize) -> K) -> Vec<Case> {
    vec![
        Case::new(of(1, 1)),
        Case::new(of(3, 2)),
        Case::new(of(5, 7)),
        Case::new(of(77, 37)),
        // One vec4 less than a workgroup, a workgroup, one more, and not full.
        Case::new(of(2, 1020)),
        Case::new(of(3, 1024)),
        Case::new(of(2, 1028)),
        Case::new(of(2, 1026)),
        // A small variance shows eps; padding must not enter mean or variance, so neither is near zero.
        Case::new(of(4, 33)).fill("x", Fill::Normal(0.0, 3e-3)),
        Case::new(of(4, 41)).fill("x", Fill::Normal(1000.0, 1.0)),
        Case::new(of(3, 643)).fill("x", Fill::Normal(-300.0, 0.05)),
        Case::new(of(2, 29)).fill("x", Fill::Constant(1000.1)),
        Case::new(of(2, 640)).fill("x", Fill::Constant(0.1)),
        Case::new(of(2, 12)).fill("x", Fill::Constant(0.0)),
        // More rows than one axis of the grid may have.
        Case::new(of(65_537, 1)),
    ]
}

/// Those of the transformers at 16x16 and at 32x32, and of the text encoder.
pub(crate) fn row_shapes<K: Kernel + 'static>(of: impl Fn(usize, usize) -> K) -> Vec<Case> {
    [(256, 1024), (1024, 640), (77, 768)].into_iter().map(|(rows, c)| Case::new(of(rows, c))).collect()
}

fn of_rows(rows: usize, c: usize) -> LayerNorm {
    LayerNorm { rows, c, eps: 1e-5 }
}

fn random(draw: &mut Draw<'_>) -> Case {
    let c = draw.of(&[1, 4, 7, 33, 320, 1020, 1023, 1024, 1025, 1028]);
    let fill = draw.of(&[Fill::Normal(0.0, 1.0), Fill::Normal(1000.0, 1.0), Fill::Constant(0.1)]);
    Case::new(LayerNorm { rows: draw.of(&[1, 2, 5, 13]), c, eps: draw.of(&[1e-5, 1e-6]) }).fill("x", fill)
}
