//! `y = residual + activation(x wᵀ + bias)`: every fully connected layer and every 1x1 convolution.
//!
//! `x [rows, k]`, `w [cols, k]` (PyTorch's orientation), `bias [cols]`, `residual` and `y [rows, cols]`. On the GPU a
//! workgroup computes a 64x64 tile, see `shaders/common/gemm.wgsl`; on the CPU it is one product of the gemm crate.

use crate::cpu::{Epilogue, Mat, Threads, matmul};
use crate::draw::Draw;
use crate::kernel::{Activation, Case, Cost, Family, Fill, Kernel, Operand, Param, Program, Tolerance, parse};
use serde::{Deserialize, Serialize};

/// Edge of the GPU's output tile: rows and columns of one workgroup.
pub(crate) const TILE: usize = 64;

/// One product of `rows` rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Rows of `x`: pixels or tokens of all images.
    pub rows: usize,
    /// Input features.
    pub k: usize,
    /// Output features.
    pub cols: usize,
    /// Whether there is a bias.
    #[serde(default)]
    pub bias: bool,
    /// Applied before the residual is added.
    #[serde(default)]
    pub activation: Activation,
    /// Whether a tensor like the output is added last.
    #[serde(default)]
    pub residual: bool,
}

/// The line of the list.
pub(crate) const FAMILY: Family = Family {
    name: "linear",
    summary: "`residual + activation(x wᵀ + bias)`, also every 1x1 convolution",
    cases,
    model_shapes,
    random,
    parse: parse::<Linear>,
};

impl Kernel for Linear {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("x", [self.rows, self.k]),
            Operand::read("w", [self.cols, self.k]),
            Operand::read("bias", [self.cols]).optional(self.bias),
            Operand::read("residual", [self.rows, self.cols]).optional(self.residual),
            Operand::write("y", [self.rows, self.cols]),
        ]
    }

    fn program(&self) -> Program {
        let tiles = |size: usize| u32::try_from(size.div_ceil(TILE)).expect("sizes are below 2^32");
        Program {
            wgsl: include_str!("../../shaders/linear.wgsl"),
            constants: vec![("HAS_BIAS", self.bias.into()), ("HAS_RESIDUAL", self.residual.into())],
            params: vec![
                Param::size("rows", self.rows),
                Param::size("cols", self.cols),
                Param::size("k4", self.k.div_ceil(4)),
                Param::size("cols4", self.cols.div_ceil(4)),
                Param::U("activation", self.activation.code()),
            ],
            grid: [tiles(self.cols), tiles(self.rows), 1],
        }
    }

    fn cost(&self) -> Cost {
        Cost::macs(self.rows * self.cols * self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.k)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias, residual] = inputs else { panic!("linear reads four operands") };
        let mut y = vec![0.0; self.rows * self.cols];
        for row in 0..self.rows {
            for col in 0..self.cols {
                let mut sum = 0.0;
                for k in 0..self.k {
                    sum += x[row * self.k + k] * w[col * self.k + k];
                }
                if self.bias {
                    sum += bias[col];
                }
                sum = crate::reference::activate(self.activation, sum);
                if self.residual {
                    sum += residual[row * self.cols + col];
                }
                y[row * self.cols + col] = sum;
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w, bias, residual], [y]) = (inputs, outputs) else { panic!("linear has five operands") };
        let x = Mat::rows(x, self.rows, self.k, self.k);
        let w = Mat::rows(w, self.cols, self.k, self.k);
        matmul(y, self.cols, x, w.t(), 1.0, false, Threads::All);
        let epilogue = Epilogue { bias, shift: &[], rows_per_image: self.rows, activation: self.activation, residual };
        epilogue.apply_all(y, self.cols);
    }

    fn params_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

fn cases() -> Vec<Case> {
    let plain = |rows, k, cols| Linear { rows, k, cols, bias: false, activation: Activation::None, residual: false };
    let full = |rows, k, cols| Linear { bias: true, residual: true, ..plain(rows, k, cols) };
    let mut cases = vec![
        Case::new(plain(1, 1, 1)),
        Case::new(full(63, 17, 65)),
        Case::new(full(64, 16, 64)),
        Case::new(full(65, 15, 63)),
        Case::new(full(2, 130, 7)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(plain(67, 29, 131)).integers(),
        Case::new(full(5, 40, 72)).integers(),
    ];
    for activation in Activation::ALL {
        cases.push(Case::new(Linear { activation, ..full(9, 20, 12) }).fill("bias", Fill::Normal(-1.0, 4.0)));
    }
    cases
}

fn model_shapes() -> Vec<Case> {
    let plain = Linear { rows: 256, k: 1024, cols: 1024, bias: false, activation: Activation::None, residual: false };
    vec![
        // mid_block: queries; the feed-forward's way out; pwconv1 and pwconv2.
        Case::new(plain.clone()),
        Case::new(Linear { k: 3072, bias: true, residual: true, ..plain.clone() }),
        Case::new(Linear { cols: 6144, bias: true, activation: Activation::Silu, ..plain.clone() }),
        Case::new(Linear { k: 6144, bias: true, residual: true, ..plain.clone() }),
        // up_blocks.0: the shortcut of 1664 channels at 32x32; keys of the text; a time projection.
        Case::new(Linear { rows: 1024, k: 1664, cols: 640, bias: true, ..plain.clone() }),
        Case::new(Linear { rows: 77, k: 768, ..plain.clone() }),
        Case::new(Linear { rows: 1, k: 512, bias: true, ..plain }),
    ]
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (rows, k, cols, bias) = (draw.size(TILE), draw.size(16), draw.size(TILE), draw.flip());
    let (activation, residual) = (draw.of(&Activation::ALL), draw.flip());
    let case = Case::new(Linear { rows, k, cols, bias, activation, residual });
    if activation == Activation::None && draw.flip() { case.integers() } else { case }
}
