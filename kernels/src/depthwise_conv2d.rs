//! `y = conv(x, w) + bias + shift` for every channel on its own: the 3x3 of the separable residual blocks.
//!
//! `x [n, h, w, c]`, `y [n, oh, ow, c]`, `w [c, 1, 3, 3]` packed to `[3, 3, c]`, `bias [c]`, `shift [n, c]` (the time
//! embedding); one row and column of zeros around. On the GPU an invocation computes four channels of one pixel from
//! nine direct loads; on the CPU a line of the image is nine multiply-adds along its channels.

use crate::draw::Draw;
use crate::kernel::{Case, Cost, Family, Fill, Kernel, Layout, Operand, Param, Program, Tolerance, folded_grid, parse};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Invocations of one workgroup.
const THREADS: usize = 256;

/// One depthwise convolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepthwiseConv2d {
    /// Images.
    pub n: usize,
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Step between output pixels, in input pixels.
    #[serde(default = "one")]
    pub stride: usize,
    /// Whether there is a bias.
    #[serde(default)]
    pub bias: bool,
    /// Whether a value per image and channel is added.
    #[serde(default)]
    pub shift: bool,
}

fn one() -> usize {
    1
}

/// The line of the list.
pub(crate) const FAMILY: Family = Family {
    name: "depthwise_conv2d",
    summary: "`conv(x, w) + bias + shift`, 3x3, every channel on its own",
    cases,
    model_shapes,
    random,
    parse: parse::<DepthwiseConv2d>,
};

impl DepthwiseConv2d {
    /// Height and width of the output.
    pub fn out_size(&self) -> (usize, usize) {
        let out = |size: usize| (size - 1) / self.stride + 1;
        (out(self.h), out(self.w))
    }

    /// Computes output line `index`, counted over all images.
    fn line(&self, index: usize, x: &[f32], w: &[f32], bias: &[f32], shift: &[f32], y: &mut [f32]) {
        let (oh, _) = self.out_size();
        let (image, top) = (index / oh, index % oh * self.stride);
        for pixel in y.chunks_exact_mut(self.c) {
            match bias {
                [] => pixel.fill(0.0),
                bias => pixel.copy_from_slice(bias),
            }
            if !shift.is_empty() {
                pixel.iter_mut().zip(&shift[image * self.c..]).for_each(|(y, s)| *y += s);
            }
        }
        for ky in (0..3).filter(|ky| (1..=self.h).contains(&(top + ky))) {
            let line = &x[(image * self.h + top + ky - 1) * self.w * self.c..][..self.w * self.c];
            for (ox, pixel) in y.chunks_exact_mut(self.c).enumerate() {
                let left = ox * self.stride;
                for kx in (0..3).filter(|kx| (1..=self.w).contains(&(left + kx))) {
                    let source = &line[(left + kx - 1) * self.c..][..self.c];
                    let weight = &w[(ky * 3 + kx) * self.c..][..self.c];
                    pixel.iter_mut().zip(source).zip(weight).for_each(|((y, x), w)| *y += x * w);
                }
            }
        }
    }
}

impl Kernel for DepthwiseConv2d {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        (self.stride == 0 || self.h == 0 || self.w == 0).then_some("`stride`, `h` and `w` must be 1 or more")
    }

    fn operands(&self) -> Vec<Operand> {
        let (oh, ow) = self.out_size();
        vec![
            Operand::read("x", [self.n, self.h, self.w, self.c]),
            Operand::read("w", [self.c, 1, 3, 3]).layout(Layout::DepthwiseTaps),
            Operand::read("bias", [self.c]).optional(self.bias),
            Operand::read("shift", [self.n, self.c]).optional(self.shift),
            Operand::write("y", [self.n, oh, ow, self.c]),
        ]
    }

    fn program(&self) -> Program {
        let c4 = self.c.div_ceil(4);
        let (oh, ow) = self.out_size();
        Program {
            wgsl: include_str!("../../shaders/depthwise_conv2d.wgsl"),
            constants: vec![("HAS_BIAS", self.bias.into()), ("HAS_SHIFT", self.shift.into())],
            params: vec![
                Param::size("n", self.n),
                Param::size("h", self.h),
                Param::size("w", self.w),
                Param::size("oh", oh),
                Param::size("ow", ow),
                Param::size("c4", c4),
                Param::size("stride", self.stride),
            ],
            grid: folded_grid((self.n * oh * ow * c4).div_ceil(THREADS)),
        }
    }

    fn cost(&self) -> Cost {
        let (oh, ow) = self.out_size();
        Cost::macs(9 * self.n * oh * ow * self.c)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(9)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, w, bias, shift] = inputs else { panic!("depthwise_conv2d reads four operands") };
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
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w, bias, shift], [y]) = (inputs, outputs) else { panic!("depthwise_conv2d has five operands") };
        let (_, ow) = self.out_size();
        let lines = y.par_chunks_exact_mut(ow * self.c).enumerate();
        lines.for_each(|(index, line)| self.line(index, x, w, bias, shift, line));
    }

    fn params_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

fn cases() -> Vec<Case> {
    let plain = |n, h, w, c| DepthwiseConv2d { n, h, w, c, stride: 1, bias: false, shift: false };
    let full = |n, h, w, c| DepthwiseConv2d { bias: true, shift: true, ..plain(n, h, w, c) };
    vec![
        Case::new(plain(1, 1, 1, 1)),
        Case::new(full(2, 1, 5, 3)),
        Case::new(full(1, 7, 1, 6)),
        // One vec4 less than a workgroup, a workgroup, one more.
        Case::new(full(1, 5, 17, 12)),
        Case::new(full(1, 8, 8, 16)),
        Case::new(plain(1, 1, 257, 4)),
        Case::new(DepthwiseConv2d { shift: true, ..plain(2, 5, 7, 10) }),
        Case::new(DepthwiseConv2d { bias: true, ..plain(2, 4, 6, 33) }).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(full(2, 6, 5, 9)).integers(),
        Case::new(plain(3, 2, 3, 64)).integers(),
        Case::new(DepthwiseConv2d { stride: 2, ..full(2, 8, 6, 12) }),
        Case::new(DepthwiseConv2d { stride: 2, ..full(1, 7, 9, 5) }).integers(),
        Case::new(DepthwiseConv2d { stride: 3, ..plain(1, 5, 1, 8) }),
    ]
}

fn model_shapes() -> Vec<Case> {
    // The separable blocks: down, the first and the other middle ones, up.
    let shapes = [(32, 320), (16, 640), (16, 1024), (32, 1664), (32, 960)];
    let block = |(size, c)| DepthwiseConv2d { n: 1, h: size, w: size, c, stride: 1, bias: true, shift: true };
    shapes.into_iter().map(|shape| Case::new(block(shape))).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (n, h, w) = (draw.of(&[1, 2]), draw.size(4), draw.size(16));
    let (c, stride) = (draw.channels(), draw.of(&[1, 2]));
    let case = Case::new(DepthwiseConv2d { n, h, w, c, stride, bias: draw.flip(), shift: draw.flip() });
    if draw.flip() { case.integers() } else { case }
}
