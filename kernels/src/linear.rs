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
//! | `moments` | `[ceil(rows / 64), 2, cols]` | f32, written with moments of channels: see `channel_moments` |
//! | `row_moments` | `[rows, 2, ceil(cols / 32)]` | f32, written with moments of rows: see `row_moments` |
//!
//! The prologue joins, normalises and activates the input as it is read.
//!
//! Several layers that read the same `x`, such as an attention's projections, are one product. The rows of `w` and `bias`
//! are then those of all layers, `[layers * cols, k]` and `[layers * cols]`, and `y` is `[layers * r, cols]`: the results of
//! one layer after the other. Here `r` are the rows with as many rows of zeros behind them as it takes for every layer to
//! begin at a multiple of 256 bytes, so that it can be bound as a tensor of its own.
//!
//! * GPU: every workgroup computes one tile of `y`. `tile.rs` lists the tiles, which are the variants of the kernel;
//!   `shaders/common/gemm.wgsl` and `gemm_matrix.wgsl` (matrix units) compute them. With some of the tiles several
//!   workgroups sum over a part of `k` each, and a second stage adds the parts and applies the epilogue.
//! * CPU: one product with packed panels (`panels.rs`) on all threads or, if the prologue changes the input, one
//!   product per block of rows, which is first written to scratch memory.

mod cases;

use crate::channel_moments::{self, tiles_fit};
use crate::cpu::{Epilogue, Threads};
use crate::fold::{EpilogueOp, PrologueOp};
use crate::kernel::{
    Activation, Cost, Family, Kernel, Layout, Operand, Param, Program, Stage, Tolerance, parse, rows_to_bind, too_many,
};
use crate::names;
use crate::panels::{Left, Panels, multiply};
use crate::prologue::{Prologue, PrologueInputs};
use crate::row_moments;
use crate::tile::{self, Moments, ProductEnd, Sizes, Tile};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Fully connected layer applied to `rows` rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Rows of `x`: pixels or tokens of all images.
    pub rows: usize,
    /// Input features.
    pub k: usize,
    /// Output features of a layer.
    pub cols: usize,
    /// Number of layers, each with weights and an output of its own. Several layers have widths of a multiple of four,
    /// and neither residual nor moments.
    #[serde(default = "one")]
    pub layers: usize,
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
    /// Moments of `y` that are written too. For those of channels, the rows must be one image, or images of a multiple
    /// of 64 rows each.
    #[serde(default)]
    pub moments: Moments,
}

fn one() -> usize {
    1
}

impl Default for Linear {
    fn default() -> Self {
        Self {
            rows: 0,
            k: 0,
            cols: 0,
            layers: 1,
            bias: false,
            activation: Activation::None,
            residual: false,
            prologue: Prologue::default(),
            moments: Moments::None,
        }
    }
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "linear",
    summary: "`residual + activation(x wᵀ + bias)`, also every 1x1 convolution",
    cases: cases::cases,
    model_shapes: cases::model_shapes,
    random: cases::random,
    parse: parse::<Linear>,
};

impl Linear {
    /// Returns the columns of all layers.
    fn all_cols(&self) -> usize {
        self.layers * self.cols
    }

    /// Returns the rows of a layer of `y`, those of zeros included.
    fn stored_rows(&self) -> usize {
        if self.layers == 1 { self.rows } else { rows_to_bind(self.rows, self.cols) }
    }

    /// Returns the sizes of the matrix product.
    fn sizes(&self) -> Sizes {
        Sizes { rows: self.rows, k: self.k, cols: self.all_cols(), phases: 1 }
    }

    /// Returns the program that computes `y` with one of the tiles.
    fn program_of(&self, tile: &Tile) -> Program {
        let &Self { bias, activation, residual, layers, moments, .. } = self;
        let end = ProductEnd { bias, activation, residual, layers, phases: 1, moments, f32_output: false };
        let mut constants = end.constants().to_vec();
        constants.extend(self.prologue.constants(tile.divides(self.prologue.per_image(self.rows))));
        constants.extend(tile.constants());
        let mut params = vec![
            Param::size(names::FIRST_ROW_TILE, 0),
            Param::size("rows", self.rows),
            Param::size("cols", self.all_cols()),
            Param::size("k4", self.k.div_ceil(4)),
            Param::size("cols4", self.all_cols().div_ceil(4)),
        ];
        if self.layers > 1 {
            params.extend([Param::size("layer4", self.cols / 4), Param::size("stored_rows", self.stored_rows())]);
        }
        params.extend(self.prologue.params(self.rows, self.k));
        let wgsl = include_str!("../../shaders/linear.wgsl");
        Program { wgsl, constants, params, grid: tile.grid(self.stored_rows(), self.all_cols()) }
    }
}

impl Kernel for Linear {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        if self.layers == 0 {
            return Some("`layers` must be at least one");
        }
        if self.layers > 1 && (self.residual || self.moments != Moments::None) {
            return Some("several `layers` have neither `residual` nor `moments`");
        }
        if self.layers > 1 && !self.cols.is_multiple_of(4) {
            return Some("`cols` of several `layers` must be a multiple of four");
        }
        self.prologue.refusal(self.rows, self.k).or_else(|| too_many(&self.operands()))
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![
            self.prologue.x(&[self.rows], self.k),
            Operand::weight("w", [self.all_cols(), self.k]).host(Layout::panels(self.layers)),
            Operand::read(names::BIAS, [self.all_cols()]).optional(self.bias),
            Operand::read(names::RESIDUAL, [self.rows, self.cols]).optional(self.residual),
        ];
        operands.extend(self.prologue.operands(&[self.rows], self.k));
        operands.push(Operand::write(names::Y, [self.layers * self.stored_rows(), self.cols]));
        let (of_channels, of_rows) = (self.moments == Moments::Channels, self.moments == Moments::Rows);
        operands.push(channel_moments::operand(1, self.rows, self.cols).optional(of_channels));
        operands.push(row_moments::operand(self.rows, self.cols).optional(of_rows));
        operands
    }

    fn variants(&self) -> Vec<Variant> {
        tile::variants(tile::SINGLE, self.sizes(), &self.prologue, self.moments)
    }

    fn program(&self, variant: &Variant) -> Program {
        self.program_of(&tile::of(tile::SINGLE, variant))
    }

    fn stages(&self, variant: &Variant) -> Vec<Stage> {
        let tile = tile::of(tile::SINGLE, variant);
        tile::stages(tile, self.operands(), self.sizes(), |tile| self.program_of(tile))
    }

    fn cost(&self) -> Cost {
        Cost::macs(&[self.rows, self.all_cols(), self.k])
    }

    fn in_place(&self) -> Option<&'static str> {
        self.residual.then_some(names::RESIDUAL)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.k)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias, residual, x2, stats, norm_weight, norm_bias, norm] = inputs else {
            panic!("linear reads nine operands")
        };
        let x = self.prologue.reference(self.k, PrologueInputs { x, x2, stats, norm_weight, norm_bias, norm });
        let layer_size = self.stored_rows() * self.cols;
        let mut y = vec![0.0; self.layers * layer_size];
        for row in 0..self.rows {
            for col in 0..self.layers * self.cols {
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
                y[col / self.cols * layer_size + row * self.cols + col % self.cols] = sum;
            }
        }
        let (of_channels, of_rows) = match self.moments {
            Moments::None => (Vec::new(), Vec::new()),
            Moments::Channels => (channel_moments::reference(1, self.rows, self.cols, &y), Vec::new()),
            Moments::Rows => (Vec::new(), row_moments::reference(self.rows, self.cols, &y)),
        };
        vec![y, of_channels, of_rows]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w, bias, residual, x2, stats, norm_weight, norm_bias, norm], [y, of_channels, of_rows]) =
            (inputs, outputs)
        else {
            panic!("linear has twelve operands")
        };
        let inputs = PrologueInputs { x, x2, stats, norm_weight, norm_bias, norm };
        self.prologue.rows(self.rows, self.k, inputs).in_large_blocks(|first, x| {
            let rows = x.len() / self.k;
            let layers = y.chunks_exact_mut(self.stored_rows() * self.cols).zip(w.chunks_exact(w.len() / self.layers));
            for (layer, (y, w)) in layers.enumerate() {
                let bias = if self.bias { &bias[layer * self.cols..][..self.cols] } else { &[] };
                let (activation, rows_per_image) = (self.activation, self.rows);
                let epilogue = Epilogue { bias, shift: &[], rows_per_image, activation, residual, first_row: first };
                let (written, rest) = y[first * self.cols..].split_at_mut(rows * self.cols);
                let w = Panels::new(w, self.cols, self.k);
                multiply(written, Left::new(x, rows, self.k), w, Some(epilogue), Threads::All);
                if first + rows == self.rows {
                    rest.fill(0.0);
                }
            }
        });
        match self.moments {
            Moments::None => {}
            Moments::Channels => channel_moments::write_all(1, self.rows, self.cols, y, of_channels),
            Moments::Rows => row_moments::write_all(self.cols, y, of_rows),
        }
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let prologue = (operand == names::X).then(|| self.prologue.with(self.k, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }

    fn with_epilogue(&self, op: &EpilogueOp) -> Option<Box<dyn Kernel>> {
        // Nothing changes an output whose moments are written, or that of several layers.
        if self.moments != Moments::None || self.layers > 1 {
            return None;
        }
        let changed = match *op {
            EpilogueOp::Activate(activation) if self.activation == Activation::None && !self.residual => {
                Self { activation, ..self.clone() }
            }
            EpilogueOp::Moments { images } if tiles_fit(images, self.rows / images) => {
                Self { moments: Moments::Channels, ..self.clone() }
            }
            EpilogueOp::RowMoments => Self { moments: Moments::Rows, ..self.clone() },
            EpilogueOp::AddResidual if !self.residual => Self { residual: true, ..self.clone() },
            _ => return None,
        };
        Some(Box::new(changed))
    }

    fn stacked(&self, layers: usize) -> Option<Box<dyn Kernel>> {
        let all = Self { layers, ..self.clone() };
        // Rows of zeros take as long as others.
        let pays = all.stored_rows() <= 2 * self.rows + 2;
        (self.layers == 1 && pays && all.refusal().is_none()).then(|| Box::new(all) as Box<dyn Kernel>)
    }
}
