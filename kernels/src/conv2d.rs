//! `y = residual + activation(conv(x, w) + bias + shift)`: every dense convolution, 3x3 or 1x1.
//!
//! `x [n, h, w, ci]`, `w [co, ci, kh, kw]` packed to `[co, kh, kw, ci]`, `bias [co]`, `shift [n, co]` (the time
//! embedding), `residual` and `y [n, oh, ow, co]`; `upsample` 2 reads `x` as if every pixel stood for 2x2. On the GPU an
//! implicit matrix product (`shaders/common/gemm.wgsl`): a row is an output pixel, k runs over taps and channels. On
//! the CPU blocks of output pixels are gathered into a patch matrix and multiplied by the gemm crate, and where it pays
//! Winograd's algorithm saves more than half of the multiplications.

mod cases;
mod winograd;

use crate::cpu::{Epilogue, Mat, Threads, matmul, rows_per_task};
use crate::kernel::{Activation, Cost, Family, Kernel, Layout, Operand, Param, Program, Tolerance, parse};
use crate::linear::TILE;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// One convolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    /// The input row or column under `tap` at output `at`, if it is inside `size` pixels.
    fn source(&self, at: usize, tap: usize, size: usize) -> Option<usize> {
        let padded = at * self.stride + tap;
        let inside = padded >= self.pad_start && padded - self.pad_start < size * self.upsample;
        inside.then(|| (padded - self.pad_start) / self.upsample)
    }

    /// Copies what lies under the kernel at output pixels `first..` into the rows of `patches`.
    fn gather(&self, x: &[f32], first: usize, patches: &mut [f32]) {
        let (oh, ow) = self.out_size();
        for (i, patch) in patches.chunks_exact_mut(self.patch_len()).enumerate() {
            let (image, oy, ox) = ((first + i) / (oh * ow), (first + i) / ow % oh, (first + i) % ow);
            for (ky, row) in patch.chunks_exact_mut(self.kernel * self.ci).enumerate() {
                let Some(iy) = self.source(oy, ky, self.h) else {
                    row.fill(0.0);
                    continue;
                };
                let line = &x[(image * self.h + iy) * self.w * self.ci..][..self.w * self.ci];
                for (kx, tap) in row.chunks_exact_mut(self.ci).enumerate() {
                    match self.source(ox, kx, self.w) {
                        Some(ix) => tap.copy_from_slice(&line[ix * self.ci..][..self.ci]),
                        None => tap.fill(0.0),
                    }
                }
            }
        }
    }

    /// Blocks of `block` pixels after each other, all threads on each: the weights are packed once a block.
    fn cpu_in_turn(&self, block: usize, x: &[f32], w: Mat<'_>, epilogue: &Epilogue<'_>, y: &mut [f32]) {
        let len = self.patch_len();
        let mut patches = vec![0.0; block.min(self.pixels()) * len];
        for (i, y) in y.chunks_mut(block * self.co).enumerate() {
            let rows = y.len() / self.co;
            let patches = &mut patches[..rows * len];
            let task = rows_per_task(len);
            let gather = |(j, part): (usize, &mut [f32])| self.gather(x, i * block + j * task, part);
            patches.par_chunks_mut(task * len).enumerate().for_each(gather);
            matmul(y, self.co, Mat::rows(patches, rows, len, len), w, 1.0, false, Threads::All);
            let task = rows_per_task(self.co);
            let finish = |(j, part): (usize, &mut [f32])| epilogue.apply(part, self.co, i * block + j * task);
            y.par_chunks_mut(task * self.co).enumerate().for_each(finish);
        }
    }

    /// Blocks of `block` pixels side by side, one thread on each.
    fn cpu_side_by_side(&self, block: usize, x: &[f32], w: Mat<'_>, epilogue: &Epilogue<'_>, y: &mut [f32]) {
        let len = self.patch_len();
        let buffer = || vec![0.0; block * len];
        y.par_chunks_mut(block * self.co).enumerate().for_each_init(buffer, |patches, (i, y)| {
            let rows = y.len() / self.co;
            let patches = &mut patches[..rows * len];
            self.gather(x, i * block, patches);
            matmul(y, self.co, Mat::rows(patches, rows, len, len), w, 1.0, false, Threads::One);
            epilogue.apply(y, self.co, i * block);
        });
    }
}

impl Kernel for Conv2d {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        let fits = |size: usize| size * self.upsample + self.pad_start + self.pad_end >= self.kernel;
        let known = matches!(self.kernel, 1 | 3) && matches!(self.upsample, 1 | 2) && self.stride > 0;
        (!known || !fits(self.h) || !fits(self.w))
            .then_some("`kernel` must be 1 or 3 and fit the padded `x`, `stride` 1 or more, `upsample` 1 or 2")
    }

    fn operands(&self) -> Vec<Operand> {
        let (oh, ow) = self.out_size();
        vec![
            Operand::read("x", [self.n, self.h, self.w, self.ci]),
            Operand::read("w", [self.co, self.ci, self.kernel, self.kernel]).layout(Layout::Taps),
            Operand::read("bias", [self.co]).optional(self.bias),
            Operand::read("shift", [self.n, self.co]).optional(self.shift),
            Operand::read("residual", [self.n, oh, ow, self.co]).optional(self.residual),
            Operand::write("y", [self.n, oh, ow, self.co]),
        ]
    }

    fn program(&self) -> Program {
        let tiles = |size: usize| u32::try_from(size.div_ceil(TILE)).expect("sizes are below 2^32");
        let switch = |size: usize| u32::try_from(size).expect("1, 2 or 3");
        let (oh, ow) = self.out_size();
        Program {
            wgsl: include_str!("../../shaders/conv2d.wgsl"),
            constants: vec![
                ("KERNEL", switch(self.kernel)),
                ("STRIDE", switch(self.stride)),
                ("UPSAMPLE", switch(self.upsample)),
                ("HAS_BIAS", self.bias.into()),
                ("HAS_SHIFT", self.shift.into()),
                ("HAS_RESIDUAL", self.residual.into()),
            ],
            params: vec![
                Param::size("rows", self.pixels()),
                Param::size("h", self.h),
                Param::size("w", self.w),
                Param::size("oh", oh),
                Param::size("ow", ow),
                Param::size("ci4", self.ci.div_ceil(4)),
                Param::size("co", self.co),
                Param::size("co4", self.co.div_ceil(4)),
                Param::size("pad_start", self.pad_start),
                Param::U("activation", self.activation.code()),
            ],
            grid: [tiles(self.co), tiles(self.pixels()), 1],
        }
    }

    fn cost(&self) -> Cost {
        Cost::macs(self.pixels() * self.co * self.patch_len())
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.patch_len())
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[_, _, bias, shift, residual] = inputs else { panic!("conv2d reads five operands") };
        let (oh, ow) = self.out_size();
        let mut y = Vec::with_capacity(self.pixels() * self.co);
        for image in 0..self.n {
            for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
                for o in 0..self.co {
                    let mut sum = reference_sum(self, inputs[0], inputs[1], [image, oy, ox, o]);
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
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, w, bias, shift, residual], [y]) = (inputs, outputs) else { panic!("conv2d has six operands") };
        let w = Mat::rows(w, self.co, self.patch_len(), self.patch_len()).t();
        let rows_per_image = self.pixels() / self.n;
        let epilogue = Epilogue { bias, shift, rows_per_image, activation: self.activation, residual };
        if self.is_pointwise() {
            matmul(y, self.co, Mat::rows(x, self.pixels(), self.ci, self.ci), w, 1.0, false, Threads::All);
            epilogue.apply_all(y, self.co);
            return;
        }
        if winograd::suits(self) {
            winograd::run(self, winograd::block(self), x, inputs[1], &epilogue, y);
            return;
        }
        // Both limits are in values of the patch matrix, measured: 2 MiB a thread stays in its L2 cache and is enough
        // work for weights that are smaller; packing larger ones pays only for the 16 MiB all threads share.
        const OWN: usize = 1 << 19;
        const SHARED: usize = 1 << 22;
        if self.co * self.patch_len() > OWN {
            self.cpu_in_turn((SHARED / self.patch_len()).max(1), x, w, &epilogue, y);
        } else {
            let fair = self.pixels().div_ceil(4 * rayon::current_num_threads());
            self.cpu_side_by_side((OWN / self.patch_len()).clamp(1, fair), x, w, &epilogue, y);
        }
    }

    fn params_json(&self) -> serde_json::Value {
        serde_json::json!(self)
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

#[cfg(test)]
mod tests {
    use super::cases::plain;
    use super::*;

    #[test]
    fn every_way_to_cut_into_blocks_gives_the_same() {
        let conv = Conv2d { bias: true, shift: true, residual: true, stride: 2, ..plain(2, 9, 7, 5, 6) };
        let whole = |len: usize| (0..len).map(|i| ((i * 7919) % 9) as f32 - 4.0).collect::<Vec<f32>>();
        let inputs: Vec<Vec<f32>> = conv.operands().iter().map(|o| whole(o.host_len())).collect();
        let mut want = vec![0.0; conv.pixels() * conv.co];
        conv.cpu(&[&inputs[0], &inputs[1], &inputs[2], &inputs[3], &inputs[4]], &mut [&mut want]);
        let w = Mat::rows(&inputs[1], conv.co, conv.patch_len(), conv.patch_len()).t();
        let rows_per_image = conv.pixels() / conv.n;
        let (bias, shift, residual) = (&inputs[2][..], &inputs[3][..], &inputs[4][..]);
        let epilogue = Epilogue { bias, shift, rows_per_image, activation: Activation::None, residual };
        for block in [1, 7, conv.pixels(), 1000] {
            let mut y = vec![f32::NAN; want.len()];
            conv.cpu_in_turn(block, &inputs[0], w, &epilogue, &mut y);
            assert_eq!(y, want, "in turn, {block} pixels each");
            y.fill(f32::NAN);
            conv.cpu_side_by_side(block, &inputs[0], w, &epilogue, &mut y);
            assert_eq!(y, want, "side by side, {block} pixels each");
        }
    }
}
