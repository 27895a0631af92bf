//! `y = a * gate(g)` with `(a, g)` the halves of `x wᵀ + bias`: the transformers' gated feed-forward on its way in, by
//! silu in the paper's networks, by gelu in Stable Diffusion's.
//!
//! `x [rows, k]`, `w [2 * cols, k]`, `bias [2 * cols]`, `y [rows, cols]`; value rows first, gate rows second;
//! `prologue` says what happens to `x` on the way in. On the GPU a workgroup stages one tile of `x` and two of `w`, so
//! that `x` is read once for both halves; on the CPU panels of both halves are multiplied one after the other, and
//! together at once; where they are no whole panels, blocks of rows.

use crate::cpu::{Threads, activate_all, with_simd};
use crate::draw::Draw;
use crate::fold::PrologueOp;
use crate::kernel::{Activation, Case, Cost, Family, Fill, Kernel, Layout, Operand, Param, Program, Tolerance, parse};
use crate::linear::rows_per_block;
use crate::names;
use crate::panels::{Left, PANEL, Panels, multiply, multiply_gated};
use crate::prologue::{Norm, Prologue};
use crate::tile::{self, TILE};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// One gated product of `rows` rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How `x` is read.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
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

    fn refusal(&self) -> Option<&'static str> {
        self.prologue.refusal(self.rows, self.k)
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![
            self.prologue.x(&[self.rows], self.k),
            Operand::weight("w", [2 * self.cols, self.k]).host(Layout::Panels),
            Operand::read("bias", [2 * self.cols]),
        ];
        operands.extend(self.prologue.operands(&[self.rows], self.k));
        operands.push(Operand::write("y", [self.rows, self.cols]));
        operands
    }

    fn variants(&self) -> Vec<Variant> {
        tile::variants(tile::PAIR, [self.rows, self.k, self.cols], &self.prologue, false)
    }

    fn program(&self, variant: &Variant) -> Program {
        let tile = tile::of(tile::PAIR, variant);
        let mut params = vec![
            Param::size("rows", self.rows),
            Param::size("cols", self.cols),
            Param::size("k4", self.k.div_ceil(4)),
            Param::size("cols4", self.cols.div_ceil(4)),
        ];
        params.extend(self.prologue.params(self.rows, self.k));
        Program {
            wgsl: include_str!("../../shaders/swish_glu.wgsl"),
            constants: [&[("GATE", self.gate.code())], &self.prologue.constants()[..], &tile.constants()].concat(),
            params,
            grid: tile.grid(self.rows, self.cols),
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
        let &[x, w, bias, ref rest @ ..] = inputs else { panic!("swish_glu reads eight operands") };
        let x = self.prologue.reference(self.k, x, rest);
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
        // Rows of a block that both products, where they have to be somewhere, do not need much memory for.
        const BLOCK: usize = 512;
        let (&[x, w, bias, ref rest @ ..], [y]) = (inputs, outputs) else { panic!("swish_glu has nine operands") };
        let (k, cols) = (self.k, self.cols);
        let w = Panels::new(w, 2 * cols, k);
        let bias = bias.split_at(cols);
        let prologue = self.prologue.rows(self.rows, k, x, rest);
        if cols.is_multiple_of(PANEL) {
            let block = if prologue.plain().is_some() { self.rows } else { rows_per_block(k) };
            return prologue.in_blocks(block, |first, x| {
                let rows = x.len() / k;
                let y = &mut y[first * cols..][..rows * cols];
                multiply_gated(
                    y,
                    Left::new(x, rows, k),
                    w,
                    #[inline(always)]
                    |y: &mut [f32], halves: (&[f32], &[f32]), first: usize| {
                        gate(self.gate, y, halves, (&bias.0[first..], &bias.1[first..]));
                    },
                );
            });
        }
        let mut both = vec![0.0; BLOCK.min(self.rows) * 2 * cols];
        prologue.in_blocks(BLOCK, |first, x| {
            let rows = x.len() / k;
            let y = &mut y[first * cols..][..rows * cols];
            multiply(&mut both, Left::new(x, rows, k), w, None, Threads::All);
            with_simd(
                #[inline(always)]
                || {
                    for (y, both) in y.chunks_exact_mut(cols).zip(both.chunks_exact(2 * cols)) {
                        gate(self.gate, y, both.split_at(cols), bias);
                    }
                },
            );
        });
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let prologue = (operand == names::X).then(|| self.prologue.with(self.k, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }
}

/// `(a + bias) * gate(g + bias)` of one row.
#[inline(always)]
fn gate(gate: Activation, y: &mut [f32], (a, g): (&[f32], &[f32]), (bias_a, bias_g): (&[f32], &[f32])) {
    // One loop each: with the choice of the gate inside of it, a loop is not vectorised.
    y.iter_mut().zip(g.iter().zip(bias_g)).for_each(|(y, (g, bias))| *y = g + bias);
    activate_all(gate, y);
    y.iter_mut().zip(a.iter().zip(bias_a)).for_each(|(y, (a, bias))| *y *= a + bias);
}

fn cases() -> Vec<Case> {
    let glu = |rows, k, cols| SwishGlu { rows, k, cols, gate: Activation::Silu, prologue: Prologue::default() };
    let gated = |gate| Case::new(SwishGlu { gate, ..glu(9, 12, 66) });
    let reading =
        |glu: SwishGlu, joined, norm| SwishGlu { prologue: Prologue { joined, norm, ..Prologue::default() }, ..glu };
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
        Case::new(SwishGlu { prologue: Prologue { f32_input: true, ..Prologue::default() }, ..glu(9, 17, 66) }),
        gated(Activation::Gelu),
        gated(Activation::QuickGelu),
        gated(Activation::None).integers(),
        gated(Activation::Relu).integers(),
        // Normalised as it is read, and from two tensors.
        Case::new(reading(glu(66, 21, 63), 0, Norm::Rows)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(reading(glu(513, 6, 7), 0, Norm::Rows)),
        // More rows than a block of the CPU form, where the halves are whole panels: several of them.
        Case::new(reading(glu(257, 4097, 128), 0, Norm::Rows)).fill("w", Fill::Normal(0.0, 0.1)),
        Case::new(reading(glu(12, 19, 5), 7, Norm::Channels { images: 2, activation: Activation::Silu })),
    ]
}

fn model_shapes() -> Vec<Case> {
    // The feed-forwards at 16x16 and at 32x32.
    let shapes = [(256, 1024, 3072), (1024, 640, 1920)];
    let prologue = Prologue { norm: Norm::Rows, ..Prologue::default() };
    let glu = |(rows, k, cols)| SwishGlu { rows, k, cols, gate: Activation::Silu, prologue: prologue.clone() };
    shapes.into_iter().map(|shape| Case::new(glu(shape))).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let gate = draw.of(&[Activation::Silu, Activation::Gelu]);
    let (rows, k, cols) = (draw.size(TILE), draw.size(16), draw.size(TILE));
    let norms = [Norm::None, Norm::Rows, Norm::Channels { images: 1, activation: Activation::None }];
    Case::new(SwishGlu { rows, k, cols, gate, prologue: Prologue::random(draw, k, &norms) })
}
