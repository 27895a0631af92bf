//! `y = conv(x, w) + bias + shift` for every channel by itself: the 3x3 convolutions of the separable residual blocks.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[n, h, w, c - joined]` | f32 if the prologue has `f32_input` |
//! | `w` | `[c, 1, 3, 3]` | packed to `[3, 3, c]` |
//! | `bias` | `[c]` | absent without `bias` |
//! | `shift` | `[n, c]` | the time embedding; absent without `shift` |
//! | `x2` | `[n, h, w, joined]` | last channels of the input, absent if `joined` is 0 |
//! | `y` | `[n, oh, ow, c]` | written |
//! | `moments` | `[n * ceil(oh * ow / 64), 2, c]` | f32, written: see `channel_moments`; absent without `moments` |
//!
//! The input has one row and one column of zeros on every side. The moments are for the GroupNorm that follows.
//!
//! * GPU: one workgroup of 256 invocations per 64 channels and 64 output pixels. An invocation computes four channels
//!   of four pixels: with a stride of one and a width that is a multiple of four, four neighbours, which share their
//!   input.
//! * CPU: one task per output line, with sums in vector registers (`line.rs`).

mod line;

use crate::channel_moments::{self, tiles_fit};
use crate::draw::Draw;
use crate::fold::{EpilogueOp, PrologueOp};
use crate::kernel::{Case, Cost, Family, Fill, Kernel, Layout, Operand, Param, Program, Tolerance, parse};
use crate::names;
use crate::prologue::{Norm, Prologue, PrologueInputs};
use crate::tile::UNSTAGED;
use crate::variant::Variant;
use line::{Input, Line};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Depthwise 3x3 convolution of a feature map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepthwiseConv2d {
    /// Images.
    pub n: usize,
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Step between output pixels, in input pixels; 1 by default.
    #[serde(default = "one")]
    pub stride: usize,
    /// Whether a bias is added.
    #[serde(default)]
    pub bias: bool,
    /// Whether `shift`, a value per image and channel, is added.
    #[serde(default)]
    pub shift: bool,
    /// How `x` is read: as one tensor or two, not normalised.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
    /// Whether the moments of the channels of `y` are written too. Each of several images must then have a multiple of
    /// 64 output pixels.
    #[serde(default)]
    pub moments: bool,
}

fn one() -> usize {
    1
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "depthwise_conv2d",
    summary: "`conv(x, w) + bias + shift`, 3x3, every channel on its own",
    cases,
    model_shapes,
    random,
    parse: parse::<DepthwiseConv2d>,
};

impl DepthwiseConv2d {
    /// Returns height and width of the output: 0 for an empty input, or if `stride` is 0.
    pub fn out_size(&self) -> (usize, usize) {
        let last = |size: usize| size.checked_sub(1)?.checked_div(self.stride);
        let out = |size: usize| last(size).map_or(0, |last| last + 1);
        (out(self.h), out(self.w))
    }
}

impl Kernel for DepthwiseConv2d {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        if self.stride == 0 || self.h == 0 || self.w == 0 {
            return Some("`stride`, `h` and `w` must be 1 or more");
        }
        let (oh, ow) = self.out_size();
        match self.prologue.norm {
            Norm::None if self.moments && !tiles_fit(self.n, oh * ow) => {
                Some("`moments` of several images need a multiple of 64 output pixels per image")
            }
            Norm::None => self.prologue.refusal(self.n * self.h * self.w, self.c),
            _ => Some("`norm` must be `none`"),
        }
    }

    fn operands(&self) -> Vec<Operand> {
        let (oh, ow) = self.out_size();
        let [x2, ..] = self.prologue.operands(&[self.n, self.h, self.w], self.c);
        vec![
            self.prologue.x(&[self.n, self.h, self.w], self.c),
            Operand::read("w", [self.c, 1, 3, 3]).layout(Layout::DepthwiseTaps),
            Operand::read("bias", [self.c]).optional(self.bias),
            Operand::read("shift", [self.n, self.c]).optional(self.shift),
            x2,
            Operand::write("y", [self.n, oh, ow, self.c]),
            channel_moments::operand(self.n, oh * ow, self.c).optional(self.moments),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let (oh, ow) = self.out_size();
        // Four neighbouring pixels read six columns together; in any other case each pixel reads three columns of its
        // own.
        let in_line = self.stride == 1 && ow.is_multiple_of(4);
        let mut constants = vec![
            ("RUN", if in_line { 4 } else { 1 }),
            ("HAS_BIAS", self.bias.into()),
            ("HAS_SHIFT", self.shift.into()),
            ("HAS_MOMENTS", self.moments.into()),
        ];
        constants.extend(self.prologue.constants(false));
        constants.extend(UNSTAGED.constants());
        let mut params = vec![
            Param::size("n", self.n),
            Param::size("h", self.h),
            Param::size("w", self.w),
            Param::size("oh", oh),
            Param::size("ow", ow),
            Param::size("c4", self.c.div_ceil(4)),
            Param::size("stride", self.stride),
        ];
        params.extend(self.prologue.params(self.n * self.h * self.w, self.c));
        let wgsl = include_str!("../../shaders/depthwise_conv2d.wgsl");
        Program { wgsl, constants, params, grid: UNSTAGED.grid(self.n * oh * ow, self.c) }
    }

    fn cost(&self) -> Cost {
        let (oh, ow) = self.out_size();
        Cost::macs(&[9, self.n, oh, ow, self.c])
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(9)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias, shift, x2] = inputs else { panic!("depthwise_conv2d reads five operands") };
        let x = self.prologue.reference(self.c, PrologueInputs { x, x2, ..Default::default() });
        let inside = |at: usize, tap: usize, size: usize| at + tap >= 1 && at + tap - 1 < size;
        let at = |image: usize, y: usize, x: usize, c: usize| ((image * self.h + y) * self.w + x) * self.c + c;
        let (oh, ow) = self.out_size();
        let mut y = Vec::with_capacity(self.n * oh * ow * self.c);
        for image in 0..self.n {
            for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
                let (top, left) = (oy * self.stride, ox * self.stride);
                for c in 0..self.c {
                    let mut sum = if self.bias { bias[c] } else { 0.0 };
                    if self.shift {
                        sum += shift[image * self.c + c];
                    }
                    for (ky, kx) in (0..3).flat_map(|ky| (0..3).map(move |kx| (ky, kx))) {
                        if inside(top, ky, self.h) && inside(left, kx, self.w) {
                            sum += x[at(image, top + ky - 1, left + kx - 1, c)] * w[(c * 3 + ky) * 3 + kx];
                        }
                    }
                    y.push(sum);
                }
            }
        }
        let moments = channel_moments::reference(self.n, oh * ow, self.c, &y);
        vec![y, if self.moments { moments } else { Vec::new() }]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w, bias, shift, x2], [y, moments]) = (inputs, outputs) else {
            panic!("depthwise_conv2d has seven operands")
        };
        let (first, (oh, ow)) = (self.prologue.first(self.c), self.out_size());
        let x = [Input { channels: first, values: x }, Input { channels: self.c - first, values: x2 }];
        y.par_chunks_mut(ow * self.c).enumerate().for_each(|(index, y)| {
            let shift = shift.get(index / oh * self.c..).unwrap_or_default();
            pulp::Arch::new().dispatch(Line { conv: self, index, x, w, added: [bias, shift], y });
        });
        if self.moments {
            channel_moments::write_all(self.n, oh * ow, self.c, y, moments);
        }
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let joins = operand == names::X && matches!(op, PrologueOp::Concat { .. });
        let prologue = joins.then(|| self.prologue.with(self.c, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }

    fn with_epilogue(&self, op: &EpilogueOp) -> Option<Box<dyn Kernel>> {
        let measures = matches!(op, EpilogueOp::Moments { images } if *images == self.n);
        let (oh, ow) = self.out_size();
        let fits = measures && !self.moments && tiles_fit(self.n, oh * ow);
        fits.then(|| Box::new(Self { moments: true, ..self.clone() }) as Box<dyn Kernel>)
    }
}

/// Returns a convolution with stride 1 and without anything that it may have besides.
fn plain(n: usize, h: usize, w: usize, c: usize) -> DepthwiseConv2d {
    let prologue = Prologue::default();
    DepthwiseConv2d { n, h, w, c, stride: 1, bias: false, shift: false, prologue, moments: false }
}

fn cases() -> Vec<Case> {
    let joined = |conv, joined| DepthwiseConv2d { prologue: Prologue { joined, ..Prologue::default() }, ..conv };
    let full = |n, h, w, c| DepthwiseConv2d { bias: true, shift: true, ..plain(n, h, w, c) };
    vec![
        Case::new(plain(1, 1, 1, 1)),
        Case::new(full(2, 1, 5, 3)),
        Case::new(full(1, 7, 1, 6)),
        // More pixels than a workgroup takes, exactly as many, and several workgroups in one line.
        Case::new(full(1, 5, 17, 12)),
        Case::new(full(1, 8, 8, 16)),
        Case::new(plain(1, 1, 257, 4)),
        Case::new(DepthwiseConv2d { shift: true, ..plain(2, 5, 7, 10) }),
        Case::new(DepthwiseConv2d { bias: true, ..plain(2, 4, 6, 33) }).fill("x", Fill::Normal(3.0, 1.0)),
        // Inputs of two tensors or in f32; outputs with moments.
        Case::new(joined(full(2, 9, 5, 23), 7)).integers(),
        Case::new(joined(full(1, 20, 3, 132), 64)),
        Case::new(DepthwiseConv2d {
            prologue: Prologue { f32_input: true, ..Prologue::default() },
            ..full(2, 5, 7, 10)
        }),
        Case::new(DepthwiseConv2d { moments: true, ..full(1, 7, 9, 65) }),
        Case::new(DepthwiseConv2d { moments: true, ..full(2, 16, 8, 6) }).fill("shift", Fill::Normal(30.0, 1.0)),
        Case::new(DepthwiseConv2d { moments: true, ..joined(full(1, 13, 10, 20), 8) }),
        Case::new(DepthwiseConv2d { stride: 2, ..joined(full(2, 19, 6, 12), 8) }),
        Case::new(full(2, 6, 5, 9)).integers(),
        Case::new(plain(3, 2, 3, 64)).integers(),
        Case::new(DepthwiseConv2d { stride: 2, ..full(2, 8, 6, 12) }),
        Case::new(DepthwiseConv2d { stride: 2, ..full(1, 7, 9, 5) }).integers(),
        Case::new(DepthwiseConv2d { stride: 3, ..plain(1, 5, 1, 8) }),
    ]
}

fn model_shapes() -> Vec<Case> {
    // The separable blocks as the plan runs them: down, the first and the other blocks of the middle, up.
    let shapes = [(32, 320, 0), (16, 640, 0), (16, 1024, 0), (32, 1664, 640), (32, 960, 320)];
    let block = |(size, c, joined)| {
        let prologue = Prologue { joined, ..Prologue::default() };
        DepthwiseConv2d { n: 1, h: size, w: size, c, stride: 1, bias: true, shift: true, prologue, moments: true }
    };
    shapes.into_iter().map(|shape| Case::new(block(shape))).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (n, h, w) = (draw.of(&[1, 2]), draw.size(4), draw.size(16));
    let (c, stride, bias, shift) = (draw.channels(), draw.of(&[1, 2]), draw.flip(), draw.flip());
    let (prologue, moments) = (Prologue::random(draw, c, &[Norm::None]), n == 1 && draw.flip());
    let case = Case::new(DepthwiseConv2d { n, h, w, c, stride, bias, shift, prologue, moments });
    if !moments && draw.flip() { case.integers() } else { case }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_maps_have_empty_outputs() {
        let of = |h, stride| DepthwiseConv2d { stride, ..plain(1, h, 7, 4) };
        assert_eq!(of(0, 1).out_size(), (0, 7), "no rows");
        assert_eq!(of(5, 0).out_size(), (0, 0), "there is no step");
        assert_eq!(of(5, 2).out_size(), (3, 4), "every second pixel");
        assert!(of(0, 1).refusal().is_some() && of(5, 0).refusal().is_some(), "an output without pixels");
    }
}
