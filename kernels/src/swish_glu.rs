//! `y = a * gate(g)` with `(a, g)` the halves of `x wᵀ + bias`: the transformers' gated feed-forward on its way in, by
//! silu in the paper's networks, by gelu in Stable Diffusion's.
//!
//! `x [rows, k]`, `w [2 * cols, k]`, `bias [2 * cols]`, `y [rows, cols]`; value rows first, gate rows second. On the
//! GPU a workgroup stages one tile of `x` and two of `w`, so that `x` is read once for both halves; on the CPU blocks
//! of rows go through one matrix product each, then the halves are multiplied.

use crate::cpu::{Mat, Threads, activate, matmul, rows_per_task};
use crate::draw::Draw;
use crate::kernel::{Activation, Case, Cost, Family, Fill, Kernel, Operand, Param, Program, Tolerance, parse};
use crate::linear::TILE;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// One gated product of `rows` rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwishGlu {
    /// Rows of `x`: tokens of all images.
    pub rows: usize,
    /// Input features.
    pub k: usize,
    /// Output features: half of the weight's rows.
    pub cols: usize,
    /// What the second half goes through before it is multiplied.
    #[serde(default = "silu")]
    pub gate: Activation,
}

fn silu() -> Activation {
    Activation::Silu
}

/// The line of the list.
pub(crate) const FAMILY: Family = Family {
    name: "swish_glu",
    summary: "`a * gate(g)`, gated by silu or another activation, with `(a, g)` the halves of `x wᵀ + bias`",
    cases,
    model_shapes,
    random,
    parse: parse::<SwishGlu>,
};

impl Kernel for SwishGlu {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("x", [self.rows, self.k]),
            Operand::read("w", [2 * self.cols, self.k]),
            Operand::read("bias", [2 * self.cols]),
            Operand::write("y", [self.rows, self.cols]),
        ]
    }

    fn program(&self) -> Program {
        let tiles = |size: usize| u32::try_from(size.div_ceil(TILE)).expect("sizes are below 2^32");
        Program {
            wgsl: include_str!("../../shaders/swish_glu.wgsl"),
            constants: vec![],
            params: vec![
                Param::size("rows", self.rows),
                Param::size("cols", self.cols),
                Param::size("k4", self.k.div_ceil(4)),
                Param::size("cols4", self.cols.div_ceil(4)),
                Param::U("gate", self.gate.code()),
            ],
            grid: [tiles(self.cols), tiles(self.rows), 1],
        }
    }

    fn cost(&self) -> Cost {
        Cost::macs(2 * self.rows * self.cols * self.k)
    }

    fn tolerance(&self) -> Tolerance {
        // Either factor has the error of a sum, and the product is compared with its own size: twice that of one sum.
        let sum = Tolerance::f32_sum(self.k);
        Tolerance { relative: 2.0 * sum.relative, ..sum }
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias] = inputs else { panic!("swish_glu reads three operands") };
        let project = |row: usize, col: usize| {
            let mut sum = bias[col];
            for k in 0..self.k {
                sum += x[row * self.k + k] * w[col * self.k + k];
            }
            sum
        };
        let mut y = Vec::with_capacity(self.rows * self.cols);
        for row in 0..self.rows {
            for col in 0..self.cols {
                let gate = crate::reference::activate(self.gate, project(row, self.cols + col));
                y.push(project(row, col) * gate);
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        // Rows of a block: enough that packing the weights for it does not matter.
        const BLOCK: usize = 512;
        let (&[x, w, bias], [y]) = (inputs, outputs) else { panic!("swish_glu has four operands") };
        let (k, cols) = (self.k, self.cols);
        let w = Mat::rows(w, 2 * cols, k, k).t();
        let (bias_a, bias_g) = bias.split_at(cols);
        let mut both = vec![0.0; BLOCK.min(self.rows) * 2 * cols];
        for (x, y) in x.chunks(BLOCK * k).zip(y.chunks_mut(BLOCK * cols)) {
            let rows = y.len() / cols;
            matmul(&mut both, 2 * cols, Mat::rows(x, rows, k, k), w, 1.0, false, Threads::All);
            let task = rows_per_task(2 * cols);
            y.par_chunks_mut(task * cols).zip(both.par_chunks(task * 2 * cols)).for_each(|(y, both)| {
                for (y, both) in y.chunks_exact_mut(cols).zip(both.chunks_exact(2 * cols)) {
                    let (a, g) = both.split_at(cols);
                    for ((y, (a, bias_a)), (g, bias_g)) in
                        y.iter_mut().zip(a.iter().zip(bias_a)).zip(g.iter().zip(bias_g))
                    {
                        *y = (a + bias_a) * activate(self.gate, g + bias_g);
                    }
                }
            });
        }
    }

    fn params_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

fn cases() -> Vec<Case> {
    let glu = |rows, k, cols| SwishGlu { rows, k, cols, gate: Activation::Silu };
    let gated = |gate| Case::new(SwishGlu { gate, ..glu(9, 12, 66) });
    vec![
        Case::new(glu(1, 1, 1)),
        Case::new(glu(63, 17, 65)),
        Case::new(glu(64, 16, 64)),
        Case::new(glu(65, 15, 63)),
        Case::new(glu(5, 40, 66)),
        Case::new(glu(3, 130, 7)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(glu(515, 3, 5)),
        // Whole numbers: a wrong row or column would be far off. Large negative gates close without NaN.
        Case::new(glu(67, 29, 131)).fill("x", Fill::Integers).fill("w", Fill::Integers).fill("bias", Fill::Integers),
        Case::new(glu(7, 9, 13)).fill("bias", Fill::Constant(-150.0)),
        gated(Activation::Gelu),
        gated(Activation::QuickGelu),
        gated(Activation::None).integers(),
        gated(Activation::Relu).integers(),
    ]
}

fn model_shapes() -> Vec<Case> {
    // The feed-forwards at 16x16 and at 32x32.
    let shapes = [(256, 1024, 3072), (1024, 640, 1920)];
    shapes.into_iter().map(|(rows, k, cols)| Case::new(SwishGlu { rows, k, cols, gate: Activation::Silu })).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let gate = draw.of(&[Activation::Silu, Activation::Gelu]);
    Case::new(SwishGlu { rows: draw.size(TILE), k: draw.size(16), cols: draw.size(TILE), gate })
}
