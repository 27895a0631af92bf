//! How a kernel reads its input: as it is, or doing on the way what would be a step of its own.
//!
//! The input has `channels` channels in rows, stored like all floats of the plan or, `wide`, as f32. The last `joined` of
//! them may come from a second tensor `x2`, and rows may be normalised, by statistics of the row (`stats`, with
//! `norm_weight` and `norm_bias`: a LayerNorm) or by a scale and an offset of every channel of an image (`norm`: a
//! GroupNorm, see `group_norm_scale`), then activated. On the GPU that is `shaders/common/source.wgsl`; on the CPU blocks
//! of rows are made ready in scratch memory.

use crate::cpu::{Threads, activate_all, rows_per_task, with_simd};
use crate::draw::Draw;
use crate::fold::PrologueOp;
use crate::kernel::{Activation, DType, Operand, Param};
use crate::names;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// What happens to the input as it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prologue {
    /// Channels that come from `x2`, behind those of `x`, which then are a multiple of four; 0 without `x2`.
    pub joined: usize,
    /// Applied to the channels of both; `Rows` to those of `x` alone, without `x2`.
    pub norm: Norm,
    /// Whether `x` is f32 however the plan stores floats: a sampler's state, on its way into a network.
    #[serde(rename = "wide")]
    pub f32_input: bool,
}

/// A normalisation with given statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// The input as it is.
    #[default]
    None,
    /// `(x - mean) * rstd * norm_weight + norm_bias` with `stats [rows, 2]`.
    Rows,
    /// `activation(x * scale + offset)` with `norm [images, 2, channels]`, scales first.
    Channels {
        /// Images the rows belong to, equally many each.
        images: usize,
        /// Applied last.
        activation: Activation,
    },
}

/// Operands a prologue may add, in order.
pub(crate) const OPERANDS: usize = 5;

impl Prologue {
    /// A random prologue of an input of `channels` channels.
    pub(crate) fn random(draw: &mut Draw<'_>, channels: usize, norms: &[Norm]) -> Self {
        let norm = draw.of(norms);
        let joined = if channels > 4 && norm != Norm::Rows && draw.flip() { channels - 4 } else { 0 };
        Self { joined, norm, f32_input: draw.flip() }
    }

    /// Why an input of `channels` channels in `rows` rows cannot be read like this, if so.
    pub(crate) fn refusal(&self, rows: usize, channels: usize) -> Option<&'static str> {
        let joins = self.joined == 0 || (self.joined < channels && (channels - self.joined).is_multiple_of(4));
        let images = match self.norm {
            Norm::Channels { images, .. } => images,
            Norm::None | Norm::Rows => 1,
        };
        if !joins {
            return Some("`joined` must leave a multiple of four channels to `x`");
        }
        if self.joined > 0 && self.norm == Norm::Rows {
            return Some("`rows` are normalised of one tensor only");
        }
        (images == 0 || !rows.is_multiple_of(images)).then_some("`images` must divide the rows")
    }

    /// Channels of `x` itself.
    pub(crate) fn first(&self, channels: usize) -> usize {
        channels - self.joined
    }

    /// Whether nothing happens to the values.
    fn is_plain(&self) -> bool {
        self.joined == 0 && self.norm == Norm::None
    }

    fn images(&self) -> usize {
        if let Norm::Channels { images, .. } = self.norm { images } else { 1 }
    }

    /// `x`; `lead` is the input's shape without its channels.
    pub(crate) fn x(&self, lead: &[usize], channels: usize) -> Operand {
        let dtype = if self.f32_input { DType::F32 } else { DType::Elem };
        Operand::read(names::X, [lead, &[self.first(channels)]].concat()).dtype(dtype)
    }

    /// `x2`, `stats`, `norm_weight`, `norm_bias` and `norm`; `lead` is the input's shape without its channels.
    pub(crate) fn operands(&self, lead: &[usize], channels: usize) -> [Operand; OPERANDS] {
        let rows = lead.iter().product();
        let (by_row, by_channel) = (self.norm == Norm::Rows, matches!(self.norm, Norm::Channels { .. }));
        [
            Operand::read(names::X2, [lead, &[self.joined]].concat()).optional(self.joined > 0),
            Operand::read(names::STATS, [rows, 2]).dtype(DType::F32).optional(by_row),
            Operand::read(names::NORM_WEIGHT, [channels]).optional(by_row),
            Operand::read(names::NORM_BIAS, [channels]).optional(by_row),
            Operand::read(names::NORM, [self.images(), 2, channels]).dtype(DType::F32).optional(by_channel),
        ]
    }

    /// Switches of the shader.
    pub(crate) fn constants(&self) -> [(&'static str, u32); 10] {
        let (by_channel, activation) = match self.norm {
            Norm::Channels { activation, .. } => (true, activation),
            Norm::None | Norm::Rows => (false, Activation::None),
        };
        [
            ("X_F32", self.f32_input.into()),
            ("X_STORED", (!self.f32_input).into()),
            ("UNTOUCHED", (!self.f32_input && self.norm == Norm::None).into()),
            ("TOUCHED", (self.f32_input || self.norm != Norm::None).into()),
            ("HAS_X2", (self.joined > 0).into()),
            ("NORM_ROWS", (self.norm == Norm::Rows).into()),
            ("NORM_CHANNELS", by_channel.into()),
            // A division for every four values that are read, which one image can do without.
            ("NORM_IMAGE", (by_channel && self.images() == 1).into()),
            ("NORM_IMAGES", (by_channel && self.images() > 1).into()),
            ("NORM_ACTIVATION", activation.code()),
        ]
    }

    /// The last fields of the shader's `Params`.
    pub(crate) fn params(&self, rows: usize, channels: usize) -> [Param; 2] {
        let first4 = self.first(channels).div_ceil(4);
        [Param::size("first4", first4), Param::size("positions", rows / self.images())]
    }

    /// This prologue with one more thing done, if it can be.
    pub(crate) fn with(&self, channels: usize, op: &PrologueOp) -> Option<Self> {
        match *op {
            PrologueOp::Concat { channels: joined } => {
                let fits = self.joined == 0 && self.norm != Norm::Rows && (channels - joined).is_multiple_of(4);
                fits.then(|| Self { joined, ..self.clone() })
            }
            PrologueOp::Normalise(norm) => self.is_plain().then(|| Self { norm, ..self.clone() }),
            PrologueOp::CastF32 => (!self.f32_input).then(|| Self { f32_input: true, ..self.clone() }),
            PrologueOp::Upsample | PrologueOp::MergeMoments { .. } => None,
        }
    }

    /// The whole input in f64, as the steps that are folded in would make it. `rest` are the operands of
    /// [`operands`](Self::operands).
    pub(crate) fn reference(&self, channels: usize, x: &[f64], rest: &[&[f64]]) -> Vec<f64> {
        let &[x2, stats, weight, bias, norm] = rest else { panic!("a prologue has five operands") };
        let first = self.first(channels);
        let rows = x.len() / first;
        let mut all = Vec::with_capacity(rows * channels);
        for row in 0..rows {
            for c in 0..channels {
                let v = if c < first { x[row * first + c] } else { x2[row * self.joined + c - first] };
                all.push(match self.norm {
                    Norm::None => v,
                    Norm::Rows => (v - stats[2 * row]) * stats[2 * row + 1] * weight[c] + bias[c],
                    Norm::Channels { images, activation } => {
                        let of_image = row / (rows / images) * 2 * channels;
                        let (scale, offset) = (norm[of_image + c], norm[of_image + channels + c]);
                        crate::reference::activate(activation, v * scale + offset)
                    }
                });
            }
        }
        all
    }

    /// The operands, ready to be read row by row on the CPU.
    pub(crate) fn rows<'a>(&'a self, rows: usize, channels: usize, x: &'a [f32], rest: &[&'a [f32]]) -> Rows<'a> {
        let &[x2, stats, weight, bias, norm] = rest else { panic!("a prologue has five operands") };
        Rows { prologue: self, channels, per_image: rows / self.images(), x, x2, stats, weight, bias, norm }
    }
}

/// The rows of an input on the CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    prologue: &'a Prologue,
    channels: usize,
    per_image: usize,
    x: &'a [f32],
    x2: &'a [f32],
    stats: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    norm: &'a [f32],
}

impl<'a> Rows<'a> {
    /// The rows as they lie in memory, if nothing happens to them.
    pub(crate) fn plain(&self) -> Option<&'a [f32]> {
        self.prologue.is_plain().then_some(self.x)
    }

    #[inline(always)]
    fn read(&self, first: usize, out: &mut [f32]) {
        let (own, joined) = (self.prologue.first(self.channels), self.prologue.joined);
        for (i, out) in out.chunks_exact_mut(self.channels).enumerate() {
            let row = first + i;
            let (left, right) = out.split_at_mut(own);
            self.read_part(row, 0, &self.x[row * own..][..own], left);
            self.read_part(row, own, &self.x2[row * joined..][..joined], right);
        }
    }

    /// Writes the channels of a row from `at` on, which lie in `x`.
    #[inline(always)]
    fn read_part(&self, row: usize, at: usize, x: &[f32], out: &mut [f32]) {
        match self.prologue.norm {
            Norm::None => out.copy_from_slice(x),
            Norm::Rows => {
                let (mean, rstd) = (self.stats[2 * row], self.stats[2 * row + 1]);
                let affine = self.weight[at..].iter().zip(&self.bias[at..]);
                out.iter_mut().zip(x).zip(affine).for_each(|((out, x), (w, b))| *out = (x - mean) * rstd * w + b);
            }
            Norm::Channels { activation, .. } => {
                let of_image = &self.norm[row / self.per_image * 2 * self.channels..][..2 * self.channels];
                let (scale, offset) = of_image.split_at(self.channels);
                let affine = scale[at..].iter().zip(&offset[at..]);
                out.iter_mut().zip(x).zip(affine).for_each(|((out, x), (s, o))| *out = x * s + o);
                activate_all(activation, out);
            }
        }
    }

    /// Writes rows `first..` as far as `out` goes, by one thread or by all.
    pub(crate) fn make_ready(&self, first: usize, out: &mut [f32], threads: Threads) {
        let task = rows_per_task(self.channels);
        match threads {
            Threads::One => with_simd(
                #[inline(always)]
                || self.read(first, out),
            ),
            Threads::All => out
                .par_chunks_mut(task * self.channels)
                .enumerate()
                .for_each(|(i, out)| self.make_ready(first + i * task, out, Threads::One)),
        }
    }

    /// Hands the rows to `then` in blocks of `block`, with the number of the first: as they lie in memory if nothing
    /// happens to them, else made ready by all threads in scratch memory.
    pub(crate) fn in_blocks(&self, block: usize, mut then: impl FnMut(usize, &[f32])) {
        let len = block * self.channels;
        if let Some(x) = self.plain() {
            return x.chunks(len).enumerate().for_each(|(i, x)| then(i * block, x));
        }
        let rows = self.x.len() / self.prologue.first(self.channels);
        let mut scratch = vec![0.0; len.min(rows * self.channels)];
        for first in (0..rows).step_by(block) {
            let ready = &mut scratch[..block.min(rows - first) * self.channels];
            self.make_ready(first, ready, Threads::All);
            then(first, ready);
        }
    }
}
