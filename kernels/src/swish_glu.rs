//! `y = a * gate(g)` with `[a | g] = x wᵀ + bias`: the first half of the gated feed-forward of a transformer block (GLU
//! variants, arXiv 2002.05202). The gate is SiLU in the paper's networks and GELU in Stable Diffusion's.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, k - joined]` | f32 if the prologue has `f32_input` |
//! | `w` | `[2 * cols, k]` | rows of `a`, then rows of `g` |
//! | `bias` | `[2 * cols]` | of `a`, then of `g` |
//! | `x2`, `stats`, `norm_weight`, `norm_bias`, `norm` | | operands of the prologue |
//! | `y` | `[rows, cols]` | written |
//!
//! * GPU: every workgroup computes the same tile of `a` and of `g`: it stages one tile of `x` and two of `w`
//!   (`shaders/common/gemm.wgsl`), so that `x` is read once for both. `tile.rs` lists the tiles (`PAIR`).
//! * CPU: if `cols` is a multiple of a panel (64), a task multiplies a panel of `a` and the panel of `g` that belongs
//!   to it and combines them at once. Otherwise both products of a block of rows are written to scratch memory and
//!   combined there.

use crate::cpu::{Threads, activate_all, with_simd};
use crate::draw::Draw;
use crate::fold::PrologueOp;
use crate::kernel::{Activation, Case, Cost, Family, Fill, Kernel, Layout, Operand, Param, Program, Tolerance, parse};
use crate::names;
use crate::panels::{Left, PANEL, Panels, multiply, multiply_gated};
use crate::prologue::{Norm, Prologue, PrologueInputs};
use crate::tile::{self, Moments, Sizes, TILE};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Gated product of `rows` rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwishGlu {
    /// Rows of `x`: tokens of all images.
    pub rows: usize,
    /// Input features.
    pub k: usize,
    /// Output features: half of the rows of `w`.
    pub cols: usize,
    /// Activation of the gates `g`.
    #[serde(default = "silu")]
    pub gate: Activation,
    /// How `x` is read: joined with `x2`, normalised, as f32.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
}

fn silu() -> Activation {
    Activation::Silu
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
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
            Operand::weight("w", [2 * self.cols, self.k]).host(Layout::panels(1)),
            Operand::read("bias", [2 * self.cols]),
        ];
        operands.extend(self.prologue.operands(&[self.rows], self.k));
        operands.push(Operand::write("y", [self.rows, self.cols]));
        operands
    }

    fn variants(&self) -> Vec<Variant> {
        let sizes = Sizes { rows: self.rows, k: self.k, cols: self.cols, phases: 1 };
        tile::variants(tile::PAIR, sizes, &self.prologue, Moments::None)
    }

    fn program(&self, variant: &Variant) -> Program {
        let tile = tile::of(tile::PAIR, variant);
        let prologue = self.prologue.constants(tile.divides(self.prologue.per_image(self.rows)));
        let mut params = vec![
            Param::size(names::FIRST_ROW_TILE, 0),
            Param::size("rows", self.rows),
            Param::size("cols", self.cols),
            Param::size("k4", self.k.div_ceil(4)),
            Param::size("cols4", self.cols.div_ceil(4)),
        ];
        params.extend(self.prologue.params(self.rows, self.k));
        Program {
            wgsl: include_str!("../../shaders/swish_glu.wgsl"),
            constants: [&[("GATE", self.gate.code())], &prologue[..], &tile.constants()].concat(),
            params,
            grid: tile.grid(self.rows, self.cols),
        }
    }

    fn cost(&self) -> Cost {
        Cost::macs(&[2, self.rows, self.cols, self.k])
    }

    fn tolerance(&self) -> Tolerance {
        // Each factor has the relative error of a sum, and the errors of the two factors add up.
        let sum = Tolerance::f32_sum(self.k);
        Tolerance { relative: 2.0 * sum.relative, ..sum }
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias, x2, stats, norm_weight, norm_bias, norm] = inputs else {
            panic!("swish_glu reads eight operands")
        };
        let x = self.prologue.reference(self.k, PrologueInputs { x, x2, stats, norm_weight, norm_bias, norm });
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
        // Rows of a block whose two products are written to scratch memory: few, so that they need little of it.
        const BLOCK: usize = 512;
        let (&[x, w, bias, x2, stats, norm_weight, norm_bias, norm], [y]) = (inputs, outputs) else {
            panic!("swish_glu has nine operands")
        };
        let (k, cols) = (self.k, self.cols);
        let w = Panels::new(w, 2 * cols, k);
        let (bias, gate_bias) = bias.split_at(cols);
        let inputs = PrologueInputs { x, x2, stats, norm_weight, norm_bias, norm };
        let prologue = self.prologue.rows(self.rows, k, inputs);
        if cols.is_multiple_of(PANEL) {
            return prologue.in_large_blocks(|first, x| {
                let rows = x.len() / k;
                let y = &mut y[first * cols..][..rows * cols];
                multiply_gated(
                    y,
                    Left::new(x, rows, k),
                    w,
                    #[inline(always)]
                    |y: &mut [f32], gates: &mut [f32], col: usize| {
                        gated(self.gate, (y, &bias[col..]), (gates, &gate_bias[col..]));
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
                    for (y, both) in y.chunks_exact_mut(cols).zip(both.chunks_exact_mut(2 * cols)) {
                        let (values, gates) = both.split_at_mut(cols);
                        y.copy_from_slice(values);
                        gated(self.gate, (y, bias), (gates, gate_bias));
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

/// Computes `y = (y + bias) * gate(gates + bias)` for a piece of a row. `y` and `gates` come with their biases; the
/// activated gates are left in `gates`.
#[inline(always)]
fn gated(gate: Activation, (y, bias): (&mut [f32], &[f32]), (gates, gate_bias): (&mut [f32], &[f32])) {
    // Three loops: a loop that contains the choice of the activation is not vectorised.
    gates.iter_mut().zip(gate_bias).for_each(|(gate, bias)| *gate += bias);
    activate_all(gate, gates);
    y.iter_mut().zip(bias).zip(gates).for_each(|((y, bias), gate)| *y = (*y + bias) * *gate);
}

fn cases() -> Vec<Case> {
    let glu = |rows, k, cols| SwishGlu { rows, k, cols, gate: Activation::Silu, prologue: Prologue::default() };
    let gated = |gate| Case::new(SwishGlu { gate, ..glu(9, 12, 66) });
    let reading =
        |glu: SwishGlu, joined, norm| SwishGlu { prologue: Prologue { joined, norm, ..Prologue::default() }, ..glu };
    let one_sign = |glu| Case::new(glu).fill("w", Fill::Normal(0.5, 0.1)).fill("norm_bias", Fill::Normal(2.0, 0.3));
    vec![
        Case::new(glu(1, 1, 1)),
        Case::new(glu(63, 17, 65)),
        Case::new(glu(64, 16, 64)),
        Case::new(glu(65, 15, 63)),
        Case::new(glu(5, 40, 66)),
        Case::new(glu(3, 130, 7)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(glu(515, 3, 5)),
        // Whole numbers, where a wrong row or column is far off; large negative gates, which must close without NaN.
        Case::new(glu(67, 29, 131)).fill("x", Fill::Integers).fill("w", Fill::Integers).fill("bias", Fill::Integers),
        Case::new(glu(7, 9, 13)).fill("bias", Fill::Constant(-150.0)),
        Case::new(SwishGlu { prologue: Prologue { f32_input: true, ..Prologue::default() }, ..glu(9, 17, 66) }),
        gated(Activation::Gelu),
        gated(Activation::QuickGelu),
        gated(Activation::None).integers(),
        gated(Activation::Relu).integers(),
        // Normalised inputs; one of them from two tensors. LayerNorms have sums of one sign: where thousands of products
        // of two sums may cancel, some rounding error is larger than the tolerance of variants that round factors.
        one_sign(reading(glu(66, 21, 63), 0, Norm::LAYER)).fill("x", Fill::Normal(3.0, 1.0)),
        one_sign(reading(glu(513, 6, 7), 0, Norm::LAYER)),
        // More rows than a block of the CPU form, where the halves are several whole panels.
        one_sign(reading(glu(257, 4097, 128), 0, Norm::LAYER)).fill("w", Fill::Normal(0.01, 0.01)),
        Case::new(reading(glu(12, 19, 5), 7, Norm::Channels { images: 2, activation: Activation::Silu })),
        Case::new(reading(glu(256, 9, 5), 0, Norm::Channels { images: 2, activation: Activation::None })),
    ]
}

fn model_shapes() -> Vec<Case> {
    // The feed-forwards of the transformers at 16x16 and at 32x32.
    let shapes = [(256, 1024, 3072), (1024, 640, 1920)];
    let prologue = Prologue { norm: Norm::LAYER, ..Prologue::default() };
    let glu = |(rows, k, cols)| SwishGlu { rows, k, cols, gate: Activation::Silu, prologue: prologue.clone() };
    shapes.into_iter().map(|shape| Case::new(glu(shape))).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let gate = draw.of(&[Activation::Silu, Activation::Gelu]);
    let (rows, k, cols) = (draw.size(TILE), draw.size(16), draw.size(TILE));
    let norms = [Norm::None, Norm::LAYER, Norm::Channels { images: 1, activation: Activation::None }];
    Case::new(SwishGlu { rows, k, cols, gate, prologue: Prologue::random(draw, k, &norms) })
}
