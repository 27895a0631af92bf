//! `y = residual + activation(x wᵀ + bias)`: every fully connected layer and every 1x1 convolution.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, k - joined]` | f32 if the prologue has `f32_input` |
//! | `w` | `[cols, k]` | PyTorch's orientation |
//! | `bias` | `[cols]` | absent without `bias` |
//! | `residual` | `[rows, cols]` | absent without `residual` |
//! | `x2`, `stats`, `norm_weight`, `norm_bias`, `norm` | | operands of the prologue |
//! | `y` | `[rows, cols]` | written |
//! | `moments` | `[ceil(rows / 64), 2, cols]` | f32, written: see `channel_moments`; absent without `moments` |
//! | `row_moments` | `[rows, 2, ceil(cols / 32)]` | f32, written: see `row_moments`; absent without `row_moments` |
//!
//! The prologue joins, normalises and activates the input as it is read.
//!
//! * GPU: every workgroup computes one tile of `y`. `tile.rs` lists the tiles, which are the variants of the kernel;
//!   `shaders/common/gemm.wgsl` and `gemm_matrix.wgsl` (matrix units) compute them. With some of the tiles several
//!   workgroups sum over a part of `k` each, and a second stage adds the parts and applies the epilogue.
//! * CPU: one product with packed panels (`panels.rs`) on all threads or, if the prologue changes the input, one
//!   product per block of rows, which is first written to scratch memory.

use crate::channel_moments::{self, tiles_fit};
use crate::cpu::{Epilogue, Threads};
use crate::draw::Draw;
use crate::fold::{EpilogueOp, PrologueOp};
use crate::kernel::{
    Activation, Case, Cost, Family, Fill, Kernel, Layout, Operand, Param, Program, Stage, Tolerance, parse, too_many,
};
use crate::names;
use crate::panels::{Left, Panels, multiply};
use crate::prologue::{Norm, Prologue};
use crate::row_moments;
use crate::tile::{self, Moments, TILE, Tile};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Returns the number of rows of a block of a prepared input of `k` features: 4 MiB of scratch memory, so that reading
/// the weights again for every block does not matter.
pub(crate) fn rows_per_block(k: usize) -> usize {
    ((1 << 20) / k).max(TILE)
}

/// Fully connected layer applied to `rows` rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Rows of `x`: pixels or tokens of all images.
    pub rows: usize,
    /// Input features.
    pub k: usize,
    /// Output features.
    pub cols: usize,
    /// Whether a bias is added.
    #[serde(default)]
    pub bias: bool,
    /// Activation, applied before the residual is added.
    #[serde(default)]
    pub activation: Activation,
    /// Whether a residual, a tensor of the shape of `y`, is added last.
    #[serde(default)]
    pub residual: bool,
    /// How `x` is read: joined with `x2`, normalised, as f32.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
    /// Whether the moments of the channels of `y` are written too. The rows must be one image, or images of a multiple
    /// of 64 rows each.
    #[serde(default)]
    pub moments: bool,
    /// Whether the moments of the rows of `y` are written too. Cannot be combined with `moments`.
    #[serde(default)]
    pub row_moments: bool,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "linear",
    summary: "`residual + activation(x wᵀ + bias)`, also every 1x1 convolution",
    cases,
    model_shapes,
    random,
    parse: parse::<Linear>,
};

impl Linear {
    /// Returns the program that computes `y` with one of the tiles.
    fn program_of(&self, tile: &Tile) -> Program {
        let mut constants = vec![("HAS_BIAS", self.bias.into()), (names::HAS_RESIDUAL, self.residual.into())];
        constants.extend([
            (names::IN_PLACE, 0),
            ("HAS_MOMENTS", self.moments.into()),
            ("HAS_ROW_MOMENTS", self.row_moments.into()),
            ("Y_F32", 0),
            ("ACTIVATION", self.activation.code()),
        ]);
        constants.extend(self.prologue.constants());
        constants.extend(tile.constants());
        let mut params = vec![
            Param::size("rows", self.rows),
            Param::size("cols", self.cols),
            Param::size("k4", self.k.div_ceil(4)),
            Param::size("cols4", self.cols.div_ceil(4)),
        ];
        params.extend(self.prologue.params(self.rows, self.k));
        let wgsl = include_str!("../../shaders/linear.wgsl");
        Program { wgsl, constants, params, grid: tile.grid(self.rows, self.cols) }
    }
}

impl Kernel for Linear {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        if self.moments && self.row_moments {
            return Some("`moments` and `row_moments` exclude each other");
        }
        self.prologue.refusal(self.rows, self.k).or_else(|| too_many(&self.operands()))
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![
            self.prologue.x(&[self.rows], self.k),
            Operand::weight("w", [self.cols, self.k]).host(Layout::Panels),
            Operand::read(names::BIAS, [self.cols]).optional(self.bias),
            Operand::read(names::RESIDUAL, [self.rows, self.cols]).optional(self.residual),
        ];
        operands.extend(self.prologue.operands(&[self.rows], self.k));
        operands.push(Operand::write(names::Y, [self.rows, self.cols]));
        operands.push(channel_moments::operand(1, self.rows, self.cols).optional(self.moments));
        operands.push(row_moments::operand(self.rows, self.cols).optional(self.row_moments));
        operands
    }

    fn variants(&self) -> Vec<Variant> {
        let moments = if self.row_moments { Moments::Rows } else { Moments::of_channels(self.moments) };
        tile::variants(tile::SINGLE, [self.rows, self.k, self.cols], &self.prologue, moments)
    }

    fn program(&self, variant: &Variant) -> Program {
        self.program_of(&tile::of(tile::SINGLE, variant))
    }

    fn stages(&self, variant: &Variant) -> Vec<Stage> {
        let tile = tile::of(tile::SINGLE, variant);
        tile::stages(tile, self.operands(), [self.rows, self.cols], |tile| self.program_of(tile))
    }

    fn cost(&self) -> Cost {
        Cost::macs(self.rows * self.cols * self.k)
    }

    fn residual_in_place(&self) -> bool {
        self.residual
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.k)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias, residual, ref rest @ ..] = inputs else { panic!("linear reads nine operands") };
        let x = self.prologue.reference(self.k, x, rest);
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
        let moments = if self.moments { channel_moments::reference(1, self.rows, self.cols, &y) } else { Vec::new() };
        let of_rows = if self.row_moments { row_moments::reference(self.rows, self.cols, &y) } else { Vec::new() };
        vec![y, moments, of_rows]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w, bias, residual, ref rest @ ..], [y, moments, of_rows]) = (inputs, outputs) else {
            panic!("linear has twelve operands")
        };
        let w = Panels::new(w, self.cols, self.k);
        let epilogue = Epilogue { bias, shift: &[], rows_per_image: self.rows, activation: self.activation, residual };
        let prologue = self.prologue.rows(self.rows, self.k, x, rest);
        let block = if prologue.plain().is_some() { self.rows } else { rows_per_block(self.k) };
        prologue.in_blocks(block, |first, x| {
            let rows = x.len() / self.k;
            let y = &mut y[first * self.cols..][..rows * self.cols];
            multiply(y, Left::new(x, rows, self.k), w, Some(epilogue.at_row(first)), Threads::All);
        });
        if self.moments {
            channel_moments::write_all(1, self.rows, self.cols, y, moments);
        }
        if self.row_moments {
            row_moments::write_all(self.cols, y, of_rows);
        }
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let prologue = (operand == names::X).then(|| self.prologue.with(self.k, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }

    fn with_epilogue(&self, op: &EpilogueOp) -> Option<Box<dyn Kernel>> {
        // Nothing changes an output whose moments are written.
        if self.moments || self.row_moments {
            return None;
        }
        let changed = match *op {
            EpilogueOp::Activate(activation) if self.activation == Activation::None && !self.residual => {
                Self { activation, ..self.clone() }
            }
            EpilogueOp::Moments { images } if tiles_fit(images, self.rows / images) => {
                Self { moments: true, ..self.clone() }
            }
            EpilogueOp::RowMoments => Self { row_moments: true, ..self.clone() },
            EpilogueOp::AddResidual if !self.residual => Self { residual: true, ..self.clone() },
            _ => return None,
        };
        Some(Box::new(changed))
    }
}

fn cases() -> Vec<Case> {
    let plain = |rows, k, cols| Linear { rows, k, cols, ..Linear::default() };
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
    let reading =
        |linear: Linear, joined, norm| Linear { prologue: Prologue { joined, norm, ..Prologue::default() }, ..linear };
    let channels = |images, activation| Norm::Channels { images, activation };
    cases.extend([
        // An input of two tensors: the second of any width, the border inside a step of `k` and at its end.
        Case::new(reading(full(65, 23, 70), 3, Norm::None)),
        Case::new(reading(full(7, 36, 5), 20, Norm::None)).integers(),
        // Normalised inputs, whose padding must stay zero; a tile that contains rows of several images.
        Case::new(reading(full(66, 17, 65), 0, Norm::LAYER)).fill("x", Fill::Normal(3.0, 1.0)),
        // Statistics of several blocks of channels, the last of which is not full.
        Case::new(reading(plain(5, 330, 3), 0, Norm::LAYER)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(reading(full(66, 18, 63), 0, channels(3, Activation::Silu))),
        Case::new(reading(plain(130, 40, 9), 0, channels(2, Activation::None))).integers(),
        Case::new(reading(full(12, 21, 64), 9, channels(1, Activation::Relu))),
        // An f32 `x`, alone and beside an `x2` in the stored type.
        Case::new(Linear { prologue: Prologue { f32_input: true, ..Prologue::default() }, ..full(67, 21, 64) }),
        Case::new(Linear {
            prologue: Prologue { joined: 9, f32_input: true, norm: channels(1, Activation::Silu) },
            ..full(12, 21, 64)
        }),
        // With moments: tiles of rows and columns that are not full.
        Case::new(Linear { moments: true, ..full(63, 17, 65) }),
        Case::new(Linear { moments: true, activation: Activation::Silu, ..full(193, 16, 6) }),
        Case::new(Linear { moments: true, ..reading(full(128, 20, 67), 8, channels(2, Activation::Silu)) }),
        // With moments of rows: one block, several, and a last one that is not full; a padding of three, one and none.
        Case::new(Linear { row_moments: true, ..full(65, 17, 31) }),
        Case::new(Linear { row_moments: true, activation: Activation::Relu, ..full(18, 16, 195) })
            .fill("bias", Fill::Normal(30.0, 1.0)),
        Case::new(Linear { row_moments: true, residual: false, ..reading(full(130, 140, 128), 0, Norm::LAYER) }),
        // More rows than a block of the CPU form.
        Case::new(reading(full(257, 4097, 3), 0, Norm::LAYER)),
    ]);
    cases
}

fn model_shapes() -> Vec<Case> {
    let plain = Linear { rows: 256, k: 1024, cols: 1024, ..Linear::default() };
    vec![
        // mid_block: queries; the second matrix of the feed-forward; pwconv1 and pwconv2.
        Case::new(plain.clone()),
        Case::new(Linear { k: 3072, bias: true, residual: true, ..plain.clone() }),
        Case::new(Linear { cols: 6144, bias: true, activation: Activation::Silu, ..plain.clone() }),
        Case::new(Linear { k: 6144, bias: true, residual: true, ..plain.clone() }),
        // mid_block: queries with a LayerNorm; pwconv1 with a GroupNorm.
        Case::new(Linear { prologue: Prologue { norm: Norm::LAYER, ..Prologue::default() }, ..plain.clone() }),
        Case::new(Linear {
            cols: 6144,
            bias: true,
            activation: Activation::Silu,
            prologue: Prologue {
                norm: Norm::Channels { images: 1, activation: Activation::None },
                ..Prologue::default()
            },
            ..plain.clone()
        }),
        // up_blocks.0: the shortcut of 1664 channels at 32x32, from one tensor and from two. A projection of the text
        // encoder, and one of the time.
        Case::new(Linear { rows: 1024, k: 1664, cols: 640, bias: true, ..plain.clone() }),
        Case::new(Linear {
            rows: 1024,
            k: 1664,
            cols: 640,
            bias: true,
            prologue: Prologue { joined: 640, ..Prologue::default() },
            ..plain.clone()
        }),
        Case::new(Linear { rows: 77, k: 768, cols: 768, bias: true, residual: true, ..plain.clone() }),
        Case::new(Linear { rows: 1, k: 512, bias: true, ..plain }),
    ]
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (rows, k, cols, bias) = (draw.size(TILE), draw.size(16), draw.size(TILE), draw.flip());
    let (activation, residual) = (draw.of(&Activation::ALL), draw.flip());
    let norms = [Norm::None, Norm::LAYER, Norm::Channels { images: 1, activation: Activation::Silu }];
    let prologue = Prologue::random(draw, k, &norms);
    let moments = prologue.norm != Norm::LAYER && draw.flip();
    // With a LayerNorm, a residual and row moments it would bind more buffers than every device has.
    let row_moments = !moments && (prologue.norm != Norm::LAYER || !residual) && draw.flip();
    let exact = activation == Activation::None && prologue.norm == Norm::None && !moments && !row_moments;
    let case = Case::new(Linear { rows, k, cols, bias, activation, residual, prologue, moments, row_moments });
    if exact && draw.flip() { case.integers() } else { case }
}
