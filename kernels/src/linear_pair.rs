//! `a = x w_aᵀ` and `b = x w_bᵀ` from one read of `x`: two of an attention's projections, such as queries and the tensor
//! that is both keys and values (docs/model.md, section 1.5), or keys and values of the text.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, k - joined]` | f32 if the prologue has `f32_input` |
//! | `w_a` | `[a_cols, k]` | PyTorch's orientation |
//! | `w_b` | `[b_cols, k]` | PyTorch's orientation |
//! | `x2`, `stats`, `norm_weight`, `norm_bias`, `norm` | | operands of the prologue |
//! | `a` | `[rows, a_cols]` | written |
//! | `b` | `[rows, b_cols]` | written |
//!
//! * GPU: every workgroup computes a tile of `a` and the tile of `b` at the same rows and columns: it stages one tile
//!   of `x` and two of weights (`shaders/common/gemm.wgsl`). `tile.rs` lists the tiles (`PAIR`).
//! * CPU: two products with packed panels (`panels.rs`) for the same block of rows.

use crate::cpu::Threads;
use crate::draw::Draw;
use crate::fold::PrologueOp;
use crate::kernel::{Activation, Case, Cost, Family, Fill, Kernel, Layout, Operand, Param, Program, Tolerance, parse};
use crate::linear::rows_per_block;
use crate::names;
use crate::panels::{Left, Panels, multiply};
use crate::prologue::{Norm, Prologue};
use crate::tile::{self, Moments, TILE};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Two fully connected layers, without bias, of the same `rows` rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearPair {
    /// Rows of `x`: tokens of all images.
    pub rows: usize,
    /// Input features.
    pub k: usize,
    /// Output features of the first layer.
    pub a_cols: usize,
    /// Output features of the second layer.
    pub b_cols: usize,
    /// How `x` is read: joined with `x2`, normalised, as f32.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "linear_pair",
    summary: "`x w_aᵀ` and `x w_bᵀ` from one read of `x`",
    cases,
    model_shapes,
    random,
    parse: parse::<LinearPair>,
};

impl Kernel for LinearPair {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        self.prologue.refusal(self.rows, self.k)
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![
            self.prologue.x(&[self.rows], self.k),
            Operand::weight("w_a", [self.a_cols, self.k]).host(Layout::Panels),
            Operand::weight("w_b", [self.b_cols, self.k]).host(Layout::Panels),
        ];
        operands.extend(self.prologue.operands(&[self.rows], self.k));
        operands.push(Operand::write("a", [self.rows, self.a_cols]));
        operands.push(Operand::write("b", [self.rows, self.b_cols]));
        operands
    }

    fn variants(&self) -> Vec<Variant> {
        tile::variants(tile::PAIR, [self.rows, self.k, self.a_cols.max(self.b_cols)], &self.prologue, Moments::None)
    }

    fn program(&self, variant: &Variant) -> Program {
        let tile = tile::of(tile::PAIR, variant);
        let mut params = vec![
            Param::size("rows", self.rows),
            Param::size("a_cols", self.a_cols),
            Param::size("b_cols", self.b_cols),
            Param::size("k4", self.k.div_ceil(4)),
        ];
        params.extend(self.prologue.params(self.rows, self.k));
        Program {
            wgsl: include_str!("../../shaders/linear_pair.wgsl"),
            constants: [&self.prologue.constants()[..], &tile.constants()].concat(),
            params,
            grid: tile.grid(self.rows, self.a_cols.max(self.b_cols)),
        }
    }

    fn cost(&self) -> Cost {
        Cost::macs(self.rows * (self.a_cols + self.b_cols) * self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.k)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w_a, w_b, ref rest @ ..] = inputs else { panic!("linear_pair reads eight operands") };
        let x = self.prologue.reference(self.k, x, rest);
        let project = |w: &[f64], cols: usize| {
            let mut y = Vec::with_capacity(self.rows * cols);
            for row in 0..self.rows {
                for col in 0..cols {
                    y.push((0..self.k).map(|k| x[row * self.k + k] * w[col * self.k + k]).sum());
                }
            }
            y
        };
        vec![project(w_a, self.a_cols), project(w_b, self.b_cols)]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w_a, w_b, ref rest @ ..], [a, b]) = (inputs, outputs) else { panic!("linear_pair has ten operands") };
        let k = self.k;
        let prologue = self.prologue.rows(self.rows, k, x, rest);
        let block = if prologue.plain().is_some() { self.rows } else { rows_per_block(k) };
        prologue.in_blocks(block, |first, x| {
            let rows = x.len() / k;
            let project = |y: &mut [f32], w, cols: usize| {
                let y = &mut y[first * cols..][..rows * cols];
                multiply(y, Left::new(x, rows, k), Panels::new(w, cols, k), None, Threads::All);
            };
            project(a, w_a, self.a_cols);
            project(b, w_b, self.b_cols);
        });
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let prologue = (operand == names::X).then(|| self.prologue.with(self.k, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }
}

fn cases() -> Vec<Case> {
    let plain = |rows, k, a_cols, b_cols| LinearPair { rows, k, a_cols, b_cols, ..Default::default() };
    let reading =
        |kernel, joined, norm| LinearPair { prologue: Prologue { joined, norm, ..Prologue::default() }, ..kernel };
    vec![
        Case::new(plain(1, 1, 1, 1)),
        Case::new(plain(63, 17, 65, 65)),
        Case::new(plain(64, 16, 64, 64)),
        // Two widths: first `b` is wider, then `a`.
        Case::new(plain(65, 15, 63, 130)),
        Case::new(plain(5, 40, 70, 3)),
        Case::new(plain(67, 29, 131, 66)).integers(),
        Case::new(reading(plain(66, 21, 63, 63), 0, Norm::LAYER)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(reading(plain(9, 330, 5, 5), 0, Norm::LAYER)),
        Case::new(LinearPair { prologue: Prologue { f32_input: true, ..Prologue::default() }, ..plain(9, 17, 66, 5) }),
        Case::new(reading(plain(12, 19, 5, 6), 7, Norm::Channels { images: 2, activation: Activation::Silu })),
        // More rows than a block of the CPU form.
        Case::new(reading(plain(257, 4097, 3, 2), 0, Norm::LAYER)),
    ]
}

fn model_shapes() -> Vec<Case> {
    // Self-attention of mid_block, and its keys and values of the text.
    let prologue = Prologue { norm: Norm::LAYER, ..Prologue::default() };
    vec![
        Case::new(LinearPair { rows: 256, k: 1024, a_cols: 1024, b_cols: 1024, prologue }),
        Case::new(LinearPair { rows: 77, k: 768, a_cols: 1024, b_cols: 1024, ..LinearPair::default() }),
    ]
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (rows, k) = (draw.size(TILE), draw.size(16));
    let (a_cols, b_cols) = (draw.size(TILE), draw.size(TILE));
    let norms = [Norm::None, Norm::LAYER, Norm::Channels { images: 1, activation: Activation::Silu }];
    Case::new(LinearPair { rows, k, a_cols, b_cols, prologue: Prologue::random(draw, k, &norms) })
}
