//! `q = x w_qᵀ` and `kv = x w_kvᵀ` from one read of `x`: the projections of a self-attention whose keys and values are
//! the same tensor (docs/model.md, section 1.5).
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, k - joined]` | f32 if the prologue has `f32_input` |
//! | `w_q` | `[q_cols, k]` | PyTorch's orientation |
//! | `w_kv` | `[kv_cols, k]` | PyTorch's orientation |
//! | `x2`, `stats`, `norm_weight`, `norm_bias`, `norm` | | operands of the prologue |
//! | `q` | `[rows, q_cols]` | written |
//! | `kv` | `[rows, kv_cols]` | written |
//!
//! * GPU: every workgroup computes a tile of `q` and the tile of `kv` at the same rows and columns: it stages one tile
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
use crate::tile::{self, TILE};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Query and key-value projections of `rows` rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedKvProjection {
    /// Rows of `x`: tokens of all images.
    pub rows: usize,
    /// Input features.
    pub k: usize,
    /// Features of the queries.
    pub q_cols: usize,
    /// Features of the tensor that is both keys and values.
    pub kv_cols: usize,
    /// How `x` is read: joined with `x2`, normalised, as f32.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "shared_kv_projection",
    summary: "`x w_qᵀ` and `x w_kvᵀ` from one read of `x`",
    cases,
    model_shapes,
    random,
    parse: parse::<SharedKvProjection>,
};

impl Kernel for SharedKvProjection {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        self.prologue.refusal(self.rows, self.k)
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![
            self.prologue.x(&[self.rows], self.k),
            Operand::weight("w_q", [self.q_cols, self.k]).host(Layout::Panels),
            Operand::weight("w_kv", [self.kv_cols, self.k]).host(Layout::Panels),
        ];
        operands.extend(self.prologue.operands(&[self.rows], self.k));
        operands.push(Operand::write("q", [self.rows, self.q_cols]));
        operands.push(Operand::write("kv", [self.rows, self.kv_cols]));
        operands
    }

    fn variants(&self) -> Vec<Variant> {
        tile::variants(tile::PAIR, [self.rows, self.k, self.q_cols.max(self.kv_cols)], &self.prologue, false)
    }

    fn program(&self, variant: &Variant) -> Program {
        let tile = tile::of(tile::PAIR, variant);
        let mut params = vec![
            Param::size("rows", self.rows),
            Param::size("q_cols", self.q_cols),
            Param::size("kv_cols", self.kv_cols),
            Param::size("k4", self.k.div_ceil(4)),
        ];
        params.extend(self.prologue.params(self.rows, self.k));
        Program {
            wgsl: include_str!("../../shaders/shared_kv_projection.wgsl"),
            constants: [&self.prologue.constants()[..], &tile.constants()].concat(),
            params,
            grid: tile.grid(self.rows, self.q_cols.max(self.kv_cols)),
        }
    }

    fn cost(&self) -> Cost {
        Cost::macs(self.rows * (self.q_cols + self.kv_cols) * self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.k)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w_q, w_kv, ref rest @ ..] = inputs else { panic!("shared_kv_projection reads eight operands") };
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
        vec![project(w_q, self.q_cols), project(w_kv, self.kv_cols)]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w_q, w_kv, ref rest @ ..], [q, kv]) = (inputs, outputs) else {
            panic!("shared_kv_projection has ten operands")
        };
        let k = self.k;
        let prologue = self.prologue.rows(self.rows, k, x, rest);
        let block = if prologue.plain().is_some() { self.rows } else { rows_per_block(k) };
        prologue.in_blocks(block, |first, x| {
            let rows = x.len() / k;
            let project = |y: &mut [f32], w, cols: usize| {
                let y = &mut y[first * cols..][..rows * cols];
                multiply(y, Left::new(x, rows, k), Panels::new(w, cols, k), None, Threads::All);
            };
            project(q, w_q, self.q_cols);
            project(kv, w_kv, self.kv_cols);
        });
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let prologue = (operand == names::X).then(|| self.prologue.with(self.k, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }
}

fn cases() -> Vec<Case> {
    let plain = |rows, k, q_cols, kv_cols| SharedKvProjection { rows, k, q_cols, kv_cols, ..Default::default() };
    let reading = |kernel, joined, norm| SharedKvProjection {
        prologue: Prologue { joined, norm, ..Prologue::default() },
        ..kernel
    };
    vec![
        Case::new(plain(1, 1, 1, 1)),
        Case::new(plain(63, 17, 65, 65)),
        Case::new(plain(64, 16, 64, 64)),
        // Two widths: first `kv` is wider, then `q`.
        Case::new(plain(65, 15, 63, 130)),
        Case::new(plain(5, 40, 70, 3)),
        Case::new(plain(67, 29, 131, 66)).integers(),
        Case::new(reading(plain(66, 21, 63, 63), 0, Norm::Rows)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(reading(plain(9, 64, 5, 5), 0, Norm::Rows)).integers(),
        Case::new(SharedKvProjection {
            prologue: Prologue { f32_input: true, ..Prologue::default() },
            ..plain(9, 17, 66, 5)
        }),
        Case::new(reading(plain(12, 19, 5, 6), 7, Norm::Channels { images: 2, activation: Activation::Silu })),
        // More rows than a block of the CPU form.
        Case::new(reading(plain(257, 4097, 3, 2), 0, Norm::Rows)),
    ]
}

fn model_shapes() -> Vec<Case> {
    // The self-attention of mid_block.
    let prologue = Prologue { norm: Norm::Rows, ..Prologue::default() };
    vec![Case::new(SharedKvProjection { rows: 256, k: 1024, q_cols: 1024, kv_cols: 1024, prologue })]
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (rows, k) = (draw.size(TILE), draw.size(16));
    let (q_cols, kv_cols) = (draw.size(TILE), draw.size(TILE));
    let norms = [Norm::None, Norm::Rows, Norm::Channels { images: 1, activation: Activation::Silu }];
    Case::new(SharedKvProjection { rows, k, q_cols, kv_cols, prologue: Prologue::random(draw, k, &norms) })
}
