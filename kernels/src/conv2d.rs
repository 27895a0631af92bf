//! `y = residual + activation(conv(x, w) + bias + shift)`: every dense convolution, 3x3 or 1x1.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[n, h, w, ci - joined]` | f32 if the prologue has `f32_input` |
//! | `w` | `[co, ci, kernel, kernel]` | packed to `[co, kernel, kernel, ci]`, or for `phases`, on a GPU |
//! | `bias` | `[co]` | absent without `bias` |
//! | `shift` | `[n, co]` | the time embedding; absent without `shift` |
//! | `residual` | `[n, oh, ow, co]` | absent without `residual` |
//! | `x2` | `[n, h, w, joined]` | last channels of the input, absent if `joined` is 0 |
//! | `norm` | `[n, 2, ci]` | f32, scales then offsets of a GroupNorm; absent if the prologue has no norm |
//! | `y` | `[n, oh, ow, co]` | written; f32 if `f32_output` |
//! | `moments` | `[n * ceil(oh * ow / 64), 2, co]` | f32, written: see `channel_moments`; absent without `moments` |
//!
//! The prologue joins, normalises and activates the input as it is read. With `upsample` 2 the result is then read as
//! if every pixel stood for 2x2 pixels. The zeros of the padding are added last, so that they are not normalised.
//!
//! * GPU: an implicit matrix product (`shaders/common/product.wgsl`), whose rows are output pixels, whose columns are
//!   output channels and whose `k` runs over taps and input channels. `tile.rs` lists the tiles, which are the
//!   variants. Most convolutions with `upsample` 2 are four such products, with less than half of the multiplications:
//!   see `phases`. Where blocks divide the map of a 3x3 convolution of stride 1, one more variant saves as many by
//!   Winograd's algorithm: see `blocks`.
//! * CPU: one of three algorithms, chosen by sizes that do not depend on the size of the picture, so that weights are
//!   packed in one way. `winograd` saves more than half of the multiplications of large 3x3 convolutions; `narrow`
//!   computes 3x3 convolutions to few channels; `direct` gathers patches for a matrix product and computes everything
//!   else.

mod blocks;
mod cases;
mod direct;
mod narrow;
mod phases;
mod program;
mod winograd;

pub(crate) use phases::phase_weights;
pub use phases::with_exact_sums;
pub use winograd::WinogradForm;
pub(crate) use winograd::transformed_weights;

use crate::channel_moments::{self, tiles_fit};
use crate::cpu::Epilogue;
use crate::fold::{EpilogueOp, PrologueOp};
use crate::kernel::{
    Activation, Cost, DType, Family, Kernel, Layout, Operand, Program, Stage, Tolerance, parse, too_many,
};
use crate::names;
use crate::prologue::{Norm, Prologue, PrologueInputs};
use crate::tile;
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Convolution of a feature map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv2d {
    /// Images.
    pub n: usize,
    /// Height of `x`, before upsampling.
    pub h: usize,
    /// Width of `x`, before upsampling.
    pub w: usize,
    /// Input channels.
    pub ci: usize,
    /// Output channels.
    pub co: usize,
    /// Height and width of the kernel: 1 or 3.
    pub kernel: usize,
    /// Step between output pixels, in input pixels after upsampling.
    pub stride: usize,
    /// Rows and columns of zeros above and to the left.
    pub pad_start: usize,
    /// Rows and columns of zeros below and to the right.
    pub pad_end: usize,
    /// Factor of the nearest-neighbour upsampling of the input: 1 or 2.
    pub upsample: usize,
    /// Whether a bias is added.
    #[serde(default)]
    pub bias: bool,
    /// Whether `shift`, a value per image and channel, is added with the bias.
    #[serde(default)]
    pub shift: bool,
    /// Activation, applied before the residual is added.
    #[serde(default)]
    pub activation: Activation,
    /// Whether a residual, a tensor of the shape of `y`, is added last.
    #[serde(default)]
    pub residual: bool,
    /// How `x` is read: joined with `x2`, normalised by channels, as f32.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
    /// Whether the moments of the channels of `y` are written too. Each of several images must then have a multiple of
    /// 64 output pixels. With `upsample` 2 they may be those of other pixels: see module `phases`.
    #[serde(default)]
    pub moments: bool,
    /// Whether `y` is f32 whatever the plan stores floats in: the output of a network, which a sampler divides.
    #[serde(default, rename = "wide")]
    pub f32_output: bool,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "conv2d",
    summary: "`residual + activation(conv(x, w) + bias + shift)`, 3x3 or 1x1, nearest upsampling folded in",
    cases: cases::cases,
    model_shapes: cases::model_shapes,
    random: cases::random,
    parse: parse::<Conv2d>,
};

/// Fewest pixels of a map that is taken for a decoder's.
const LARGE_MAP: usize = 256 * 256;

impl Conv2d {
    /// Returns height and width of the output: 0 where the kernel does not fit the padded input, or `stride` is 0.
    pub fn out_size(&self) -> (usize, usize) {
        let padded = |size: usize| {
            size.saturating_mul(self.upsample).saturating_add(self.pad_start).saturating_add(self.pad_end)
        };
        let last = |size: usize| padded(size).checked_sub(self.kernel)?.checked_div(self.stride);
        let out = |size: usize| last(size).map_or(0, |last| last.saturating_add(1));
        (out(self.h), out(self.w))
    }

    /// Returns the number of output pixels of all images.
    fn pixels(&self) -> usize {
        let (oh, ow) = self.out_size();
        self.n * oh * ow
    }

    /// Returns the number of input values under the kernel at one pixel.
    fn patch_len(&self) -> usize {
        self.kernel * self.kernel * self.ci
    }

    /// Returns whether `x` itself is the matrix of patches.
    fn is_pointwise(&self) -> bool {
        (self.kernel, self.stride, self.upsample, self.pad_start, self.pad_end) == (1, 1, 1, 0, 0)
    }

    /// Returns whether this is a 3x3 convolution that keeps the size of its map, upsampled or not.
    fn keeps_size(&self) -> bool {
        (self.kernel, self.stride, self.pad_start, self.pad_end) == (3, 1, 1, 1)
    }

    /// Returns the layout of the weights for the CPU form.
    fn host_layout(&self) -> Layout {
        let winograd = WinogradForm::of(self).map(Layout::Winograd);
        winograd.unwrap_or(if narrow::suits(self) { Layout::TapPanels } else { Layout::panels(1) })
    }

    /// Returns the input row (or column) under tap `tap` at output row `at`, or `None` if it is in the padding. `size`
    /// is the number of input rows.
    fn input_at(&self, at: usize, tap: usize, size: usize) -> Option<usize> {
        let padded = at * self.stride + tap;
        let inside = padded >= self.pad_start && padded - self.pad_start < size * self.upsample;
        inside.then(|| (padded - self.pad_start) / self.upsample)
    }

    /// Whether the convolution normalises its input as it reads it, if that has to be normalised.
    ///
    /// A 3x3 convolution reads every value under nine taps and for every tile of columns, and would normalise it dozens
    /// of times. One to few channels has a single tile of columns, and is left to normalise unless the map is large.
    fn normalises(&self) -> bool {
        self.kernel == 1 || narrow::suits(self) && self.h * self.w < LARGE_MAP
    }
}

impl Kernel for Conv2d {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        let (oh, ow) = self.out_size();
        let known = matches!(self.kernel, 1 | 3) && matches!(self.upsample, 1 | 2);
        if !known || oh == 0 || ow == 0 {
            return Some("`kernel` must be 1 or 3 and fit the padded `x`, `stride` 1 or more, `upsample` 1 or 2");
        }
        match self.prologue.norm {
            Norm::Rows { .. } => Some("`norm` must be `none` or `channels`"),
            Norm::Channels { images, .. } if images != self.n => Some("`images` must be `n`"),
            _ if self.moments && !tiles_fit(self.n, oh * ow) => {
                Some("`moments` of several images need a multiple of 64 output pixels per image")
            }
            _ => {
                let rows = self.n * self.h * self.w;
                self.prologue.refusal(rows, self.ci).or_else(|| too_many(&self.operands()))
            }
        }
    }

    fn operands(&self) -> Vec<Operand> {
        let (oh, ow) = self.out_size();
        let [x2, .., norm] = self.prologue.operands(&[self.n, self.h, self.w], self.ci);
        let w = [self.co, self.ci, self.kernel, self.kernel];
        let w = match phases::suits(self) {
            true => Operand::read("w", w).dtype(DType::WeightSum).layout(Layout::Phases),
            false => Operand::weight("w", w).layout(Layout::Taps),
        };
        vec![
            self.prologue.x(&[self.n, self.h, self.w], self.ci),
            w.host(self.host_layout()),
            Operand::read(names::BIAS, [self.co]).optional(self.bias),
            Operand::read(names::SHIFT, [self.n, self.co]).optional(self.shift),
            Operand::read(names::RESIDUAL, [self.n, oh, ow, self.co]).optional(self.residual),
            x2,
            norm,
            Operand::write(names::Y, [self.n, oh, ow, self.co]).dtype(if self.f32_output {
                DType::F32
            } else {
                DType::Elem
            }),
            channel_moments::operand(self.n, oh * ow, self.co).optional(self.moments),
        ]
    }

    fn variants(&self) -> Vec<Variant> {
        self.tile_variants()
    }

    fn program(&self, variant: &Variant) -> Program {
        self.program_of(&self.tile(variant))
    }

    fn stages(&self, variant: &Variant) -> Vec<Stage> {
        tile::stages(self.tile(variant), self.operands(), self.sizes(), |tile| self.program_of(tile))
    }

    fn cost(&self) -> Cost {
        Cost::macs(&[self.pixels(), self.co, self.patch_len()])
    }

    fn in_place(&self) -> Option<&'static str> {
        // In place, the residual is read in the type of `y`, but an f32 `y` has a residual of the stored type.
        (self.residual && !self.f32_output).then_some(names::RESIDUAL)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.patch_len())
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias, shift, residual, x2, norm] = inputs else { panic!("conv2d reads seven operands") };
        let x = self.prologue.reference(self.ci, PrologueInputs { x, x2, norm, ..Default::default() });
        let (oh, ow) = self.out_size();
        let mut y = Vec::with_capacity(self.pixels() * self.co);
        for image in 0..self.n {
            for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
                for o in 0..self.co {
                    let mut sum = reference_sum(self, &x, w, [image, oy, ox, o]);
                    if self.bias {
                        sum += bias[o];
                    }
                    if self.shift {
                        sum += shift[image * self.co + o];
                    }
                    sum = crate::reference::activate(self.activation, sum);
                    if self.residual {
                        sum += residual[y.len()];
                    }
                    y.push(sum);
                }
            }
        }
        let moments = if self.moments { reference_moments(self, &y) } else { Vec::new() };
        vec![y, moments]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w, bias, shift, residual, x2, norm], [y, moments]) = (inputs, outputs) else {
            panic!("conv2d has nine operands")
        };
        let rows_per_image = self.pixels() / self.n;
        let epilogue = Epilogue { bias, shift, rows_per_image, activation: self.activation, residual, first_row: 0 };
        let inputs = PrologueInputs { x, x2, norm, ..Default::default() };
        let x = self.prologue.rows(self.n * self.h * self.w, self.ci, inputs);
        if let Some(form) = WinogradForm::of(self) {
            let block = winograd::block(form, self);
            return winograd::run(form, self, block, &x, w, &epilogue, (y, moments));
        }
        if narrow::suits(self) {
            narrow::run(self, &x, w, &epilogue, y);
        } else {
            direct::run(self, &x, w, &epilogue, y);
        }
        if self.moments {
            write_moments(self, y, moments);
        }
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        if operand != names::X {
            return None;
        }
        let even = self.h.is_multiple_of(2) && self.w.is_multiple_of(2);
        let changed = match op {
            PrologueOp::Upsample if self.upsample == 1 && even && self.prologue.joined == 0 => {
                Self { h: self.h / 2, w: self.w / 2, upsample: 2, ..self.clone() }
            }
            PrologueOp::Normalise(Norm::Rows { .. }) => return None,
            PrologueOp::Normalise(_) if !self.normalises() => return None,
            op => Self { prologue: self.prologue.with(self.ci, op)?, ..self.clone() },
        };
        Some(Box::new(changed))
    }

    fn with_epilogue(&self, op: &EpilogueOp) -> Option<Box<dyn Kernel>> {
        let changed = match *op {
            EpilogueOp::Activate(activation)
                if self.activation == Activation::None && !self.residual && !self.moments =>
            {
                Self { activation, ..self.clone() }
            }
            EpilogueOp::Moments { images } if !self.moments && tiles_fit(images, self.pixels() / images) => {
                let measured = Self { moments: true, ..self.clone() };
                // Weights are to be packed in one way for pictures of all sizes.
                if phases::suits(&measured) != phases::suits(self) {
                    return None;
                }
                measured
            }
            EpilogueOp::AddResidual if !self.residual && !self.moments => Self { residual: true, ..self.clone() },
            _ => return None,
        };
        Some(Box::new(changed))
    }
}

/// Returns the sum over taps and channels for one output element `[image, oy, ox, o]`, by the definition: the input is
/// upsampled, then padded.
fn reference_sum(conv: &Conv2d, x: &[f64], w: &[f64], [image, oy, ox, o]: [usize; 4]) -> f64 {
    let mut sum = 0.0;
    for ky in 0..conv.kernel {
        for kx in 0..conv.kernel {
            let up_y = (oy * conv.stride + ky) as f64 - conv.pad_start as f64;
            let up_x = (ox * conv.stride + kx) as f64 - conv.pad_start as f64;
            let (iy, ix) = ((up_y / conv.upsample as f64).floor(), (up_x / conv.upsample as f64).floor());
            if iy < 0.0 || ix < 0.0 || iy >= conv.h as f64 || ix >= conv.w as f64 {
                continue;
            }
            let pixel = (image * conv.h + iy as usize) * conv.w + ix as usize;
            for i in 0..conv.ci {
                sum += x[pixel * conv.ci + i] * w[((o * conv.ci + i) * conv.kernel + ky) * conv.kernel + kx];
            }
        }
    }
    sum
}

/// Returns the moments of the output, whose pixels are taken in the order of the phases if it is computed so.
fn reference_moments(conv: &Conv2d, y: &[f64]) -> Vec<f64> {
    let ((oh, ow), co) = (conv.out_size(), conv.co);
    if !phases::suits(conv) {
        return channel_moments::reference(conv.n, oh * ow, co, y);
    }
    let mut taken = Vec::with_capacity(y.len());
    for first in (0..conv.n * conv.h * conv.w).step_by(64) {
        for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for pixel in first..first + 64 {
                let (line, column) = (2 * (pixel / conv.w) + down, 2 * (pixel % conv.w) + right);
                taken.extend_from_slice(&y[(line * ow + column) * co..][..co]);
            }
        }
    }
    channel_moments::reference(1, conv.n * oh * ow, co, &taken)
}

/// Computes the moments of the whole output on the CPU.
fn write_moments(conv: &Conv2d, y: &[f32], moments: &mut [f32]) {
    if phases::suits(conv) {
        return phases::write_moments(conv, y, moments);
    }
    channel_moments::write_all(conv.n, conv.pixels() / conv.n, conv.co, y, moments);
}

#[cfg(test)]
mod tests {
    use super::cases::plain;
    use super::*;

    #[test]
    fn empty_and_huge_maps_are_refused_and_not_computed_with() {
        let size = |conv: &Conv2d| conv.out_size();
        let unpadded = Conv2d { pad_start: 0, pad_end: 0, ..plain(1, 0, 2, 4, 4) };
        assert_eq!(size(&unpadded), (0, 0), "the kernel does not fit");
        assert_eq!(size(&Conv2d { stride: 0, ..plain(1, 5, 5, 4, 4) }), (0, 0), "there is no step");
        assert!(unpadded.refusal().is_some(), "an output without pixels");
        let huge = plain(1 << 21, 1 << 21, 1 << 21, 1, 1);
        let huge = Conv2d { upsample: 2, moments: true, ..huge };
        assert_eq!(size(&huge), (1 << 22, 1 << 22), "sizes of a case file");
        assert!(huge.refusal().is_none(), "whole tiles of positions: the number of elements is for others to refuse");
    }
}
