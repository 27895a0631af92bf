//! `y = residual + activation(conv(x, w) + bias + shift)`: every dense convolution, 3x3 or 1x1.
//!
//! `x [n, h, w, ci]`, `w [co, ci, kh, kw]` packed to `[co, kh, kw, ci]`, `bias [co]`, `shift [n, co]` (the time embedding),
//! `residual` and `y [n, oh, ow, co]`, f32 if `f32_output`; `upsample` 2 reads `x` as if every pixel stood for 2x2, and `prologue`
//! says what else happens to it on the way in; the zeros around it are put there after that. On the GPU an implicit matrix
//! product (`shaders/common/product.wgsl`): a row is an output pixel, k runs over taps and channels. On the CPU there are
//! three ways: where it pays, Winograd's algorithm saves more than half of the multiplications (`winograd`); to few
//! channels a product adds what each pixel gives to its neighbours (`narrow`); anything else is gathered into patches
//! (`direct`).

mod cases;
mod direct;
mod narrow;
mod winograd;

pub(crate) use winograd::transformed_weights;

use crate::channel_moments::{self, tiles_fit};
use crate::cpu::Epilogue;
use crate::fold::{EpilogueOp, PrologueOp};
use crate::kernel::{
    Activation, Cost, DType, Family, Kernel, Layout, Operand, Param, Program, Stage, Tolerance, parse, too_many,
};
use crate::names;
use crate::prologue::{Norm, Prologue};
use crate::tile::{self, Tile};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// One convolution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Edge of the square kernel: 1 or 3.
    pub kernel: usize,
    /// Step between output pixels, in (upsampled) input pixels.
    pub stride: usize,
    /// Rows and columns of zeros above and to the left.
    pub pad_start: usize,
    /// Rows and columns of zeros below and to the right.
    pub pad_end: usize,
    /// 2 reads `x` upsampled by nearest neighbour, 1 as it is.
    pub upsample: usize,
    /// Whether there is a bias.
    #[serde(default)]
    pub bias: bool,
    /// Whether a value per image and channel is added with the bias.
    #[serde(default)]
    pub shift: bool,
    /// Applied before the residual is added.
    #[serde(default)]
    pub activation: Activation,
    /// Whether a tensor like the output is added last.
    #[serde(default)]
    pub residual: bool,
    /// How `x` is read.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
    /// Whether the moments of the output's channels are written too; of several images each has a multiple of 64 pixels.
    #[serde(default)]
    pub moments: bool,
    /// Whether `y` is f32 however the plan stores floats: what a sampler divides.
    #[serde(default, rename = "wide")]
    pub f32_output: bool,
}

/// The line of the list.
pub(crate) const FAMILY: Family = Family {
    name: "conv2d",
    summary: "`residual + activation(conv(x, w) + bias + shift)`, 3x3 or 1x1, nearest upsampling folded in",
    cases: cases::cases,
    model_shapes: cases::model_shapes,
    random: cases::random,
    parse: parse::<Conv2d>,
};

impl Conv2d {
    /// Height and width of the output.
    pub fn out_size(&self) -> (usize, usize) {
        let out = |size: usize| (size * self.upsample + self.pad_start + self.pad_end - self.kernel) / self.stride + 1;
        (out(self.h), out(self.w))
    }

    /// Output pixels of all images: rows of the matrix product.
    fn pixels(&self) -> usize {
        let (oh, ow) = self.out_size();
        self.n * oh * ow
    }

    /// Values under the kernel at one pixel: inner size of the matrix product.
    fn patch_len(&self) -> usize {
        self.kernel * self.kernel * self.ci
    }

    /// Whether `x` itself is the patch matrix.
    fn is_pointwise(&self) -> bool {
        (self.kernel, self.stride, self.upsample, self.pad_start, self.pad_end) == (1, 1, 1, 0, 0)
    }

    /// How the weights lie for the CPU.
    fn host_layout(&self) -> Layout {
        match winograd::layout(self) {
            Some(layout) => layout,
            None if narrow::suits(self) => Layout::TapPanels,
            None => Layout::Panels,
        }
    }

    fn program_of(&self, tile: &Tile) -> Program {
        let switch = |size: usize| u32::try_from(size).expect("1, 2 or 3");
        let (oh, ow) = self.out_size();
        let mut constants = vec![
            ("KERNEL", switch(self.kernel)),
            ("STRIDE", switch(self.stride)),
            ("UPSAMPLE", switch(self.upsample)),
            ("HAS_BIAS", self.bias.into()),
            ("HAS_SHIFT", self.shift.into()),
            ("SHIFT_IMAGE", (self.shift && self.n == 1).into()),
            ("SHIFT_IMAGES", (self.shift && self.n > 1).into()),
            (names::HAS_RESIDUAL, self.residual.into()),
            (names::IN_PLACE, 0),
            ("HAS_MOMENTS", self.moments.into()),
            ("Y_F32", self.f32_output.into()),
            ("ACTIVATION", self.activation.code()),
        ];
        constants.extend(self.prologue.constants());
        constants.extend(tile.constants());
        let mut params = vec![
            Param::size("rows", self.pixels()),
            Param::size("h", self.h),
            Param::size("w", self.w),
            Param::size("oh", oh),
            Param::size("ow", ow),
            Param::size("ci4", self.ci.div_ceil(4)),
            Param::size("cols", self.co),
            Param::size("cols4", self.co.div_ceil(4)),
            Param::size("pad_start", self.pad_start),
        ];
        params.extend(self.prologue.params(self.n * self.h * self.w, self.ci));
        let wgsl = include_str!("../../shaders/conv2d.wgsl");
        Program { wgsl, constants, params, grid: tile.grid(self.pixels(), self.co) }
    }

    /// The input row or column under `tap` at output `at`, if it is inside `size` pixels.
    fn source(&self, at: usize, tap: usize, size: usize) -> Option<usize> {
        let padded = at * self.stride + tap;
        let inside = padded >= self.pad_start && padded - self.pad_start < size * self.upsample;
        inside.then(|| (padded - self.pad_start) / self.upsample)
    }
}

impl Kernel for Conv2d {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        let fits = |size: usize| size * self.upsample + self.pad_start + self.pad_end >= self.kernel;
        let known = matches!(self.kernel, 1 | 3) && matches!(self.upsample, 1 | 2) && self.stride > 0;
        if !known || !fits(self.h) || !fits(self.w) {
            return Some("`kernel` must be 1 or 3 and fit the padded `x`, `stride` 1 or more, `upsample` 1 or 2");
        }
        match self.prologue.norm {
            Norm::Rows => Some("`norm` must be `none` or `channels`"),
            Norm::Channels { images, .. } if images != self.n => Some("`images` must be `n`"),
            _ if self.moments && !tiles_fit(self.n, self.pixels() / self.n.max(1)) => {
                Some("`moments` of several images want a multiple of 64 pixels each")
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
        vec![
            self.prologue.x(&[self.n, self.h, self.w], self.ci),
            Operand::weight("w", [self.co, self.ci, self.kernel, self.kernel])
                .layout(Layout::Taps)
                .host(self.host_layout()),
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
        tile::variants(tile::SINGLE, [self.pixels(), self.patch_len(), self.co], &self.prologue, self.moments)
    }

    fn program(&self, variant: &Variant) -> Program {
        self.program_of(&tile::of(tile::SINGLE, variant))
    }

    fn stages(&self, variant: &Variant) -> Vec<Stage> {
        let tile = tile::of(tile::SINGLE, variant);
        tile::stages(tile, self.operands(), [self.pixels(), self.co], |tile| self.program_of(tile))
    }

    fn cost(&self) -> Cost {
        Cost::macs(self.pixels() * self.co * self.patch_len())
    }

    fn residual_in_place(&self) -> bool {
        // What is read there is stored as what is written.
        self.residual && !self.f32_output
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.patch_len())
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias, shift, residual, x2, norm] = inputs else { panic!("conv2d reads seven operands") };
        let x = self.prologue.reference(self.ci, x, &[x2, &[], &[], &[], norm]);
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
        let moments = if self.moments { channel_moments::reference(self.n, oh * ow, self.co, &y) } else { Vec::new() };
        vec![y, moments]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w, bias, shift, residual, x2, norm], [y, moments]) = (inputs, outputs) else {
            panic!("conv2d has nine operands")
        };
        let rows_per_image = self.pixels() / self.n;
        let epilogue = Epilogue { bias, shift, rows_per_image, activation: self.activation, residual };
        let x = self.prologue.rows(self.n * self.h * self.w, self.ci, x, &[x2, &[], &[], &[], norm]);
        if winograd::suits(self) {
            return winograd::run(self, winograd::block(self), &x, w, &epilogue, (y, moments));
        }
        if narrow::suits(self) {
            narrow::run(self, &x, w, &epilogue, y);
        } else {
            direct::run(self, &x, w, &epilogue, y);
        }
        if self.moments {
            channel_moments::write_all(self.n, rows_per_image, self.co, y, moments);
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
            PrologueOp::Normalise(Norm::Rows) => return None,
            // A value is read under nine taps and for every tile of columns: a norm in here would be computed dozens of
            // times. What is written once instead is the largest map there is where channels become fewer.
            PrologueOp::Normalise(_) if self.kernel > 1 && self.ci <= self.co => return None,
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
                Self { moments: true, ..self.clone() }
            }
            EpilogueOp::AddResidual if !self.residual && !self.moments => Self { residual: true, ..self.clone() },
            _ => return None,
        };
        Some(Box::new(changed))
    }
}

/// The sum over the taps and channels of one output element, from the definition: the input is upsampled, then padded.
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
