//! Prologues: the operations that a kernel does on its input as it loads it, which would otherwise be steps of their
//! own.
//!
//! The input is a matrix of rows with `channels` channels, stored in the plan's float type or, with
//! [`f32_input`](Prologue::f32_input), as f32. A prologue does up to two things with it:
//!
//! * It joins two tensors: the last [`joined`](Prologue::joined) channels come from a second tensor `x2`.
//! * It normalises with given statistics ([`Norm`]): a LayerNorm with `stats`, `norm_weight` and `norm_bias`, or a
//!   GroupNorm with a scale and an offset for every channel of an image (`norm`, see `group_norm_scale`) and an
//!   activation.
//!
//! The WGSL is `shaders/common/prologue.wgsl`, and case files call a kernel's prologue `source`. The CPU forms compute
//! blocks of rows into scratch memory and read them there.

use crate::cpu::{Threads, activate_all, rows_per_task, with_simd};
use crate::draw::Draw;
use crate::fold::PrologueOp;
use crate::kernel::{Activation, DType, Operand, Param};
use crate::names;
use crate::row_moments;
use crate::tile::TILE;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Operations on a kernel's input as it is loaded. The default loads one tensor unchanged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prologue {
    /// Number of channels that come from `x2` and follow those of `x`. The channels of `x` must then be a multiple of
    /// four. 0 if there is no `x2`.
    pub joined: usize,
    /// Normalisation of the joined channels. [`Norm::Rows`] cannot be combined with `x2`.
    pub norm: Norm,
    /// Whether `x` is f32 regardless of the plan's float type, as a sampler's state that enters a network is.
    #[serde(rename = "wide")]
    pub f32_input: bool,
}

/// Normalisation with statistics that are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Norm {
    /// No normalisation.
    #[default]
    None,
    /// LayerNorm: `(x - mean) / sqrt(variance + eps) * norm_weight + norm_bias`. Mean and variance of every row are
    /// merged from `stats [rows, 2, channels / 32]`, see [`RowMoments`](crate::RowMoments).
    Rows {
        /// Constant added to the variance.
        eps: f32,
    },
    /// GroupNorm: `activation(x * scale + offset)`, with scales and then offsets in `norm [images, 2, channels]`.
    Channels {
        /// Number of images. Each has the same number of rows.
        images: usize,
        /// Activation of the normalised values.
        #[serde(default)]
        activation: Activation,
    },
}

impl Norm {
    /// LayerNorm of test cases, with the epsilon of the model.
    pub(crate) const LAYER: Self = Self::Rows { eps: 1e-5 };

    /// Least `eps` of any norm. Devices may take numbers below 1e-38 for zero, and a constant row or group, whose
    /// variance is zero, would then be divided by zero.
    pub const LEAST_EPS: f32 = 1e-12;

    /// Whether every row is normalised by itself.
    fn is_of_rows(self) -> bool {
        matches!(self, Self::Rows { .. })
    }
}

/// Number of operands that a prologue may add to its kernel.
pub(crate) const OPERANDS: usize = 5;

/// Values of the operands that a prologue reads: `x` and those of [`Prologue::operands`]. They are empty for operands
/// that are left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrologueInputs<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) x2: &'a [T],
    pub(crate) stats: &'a [T],
    pub(crate) norm_weight: &'a [T],
    pub(crate) norm_bias: &'a [T],
    pub(crate) norm: &'a [T],
}

// Derived, it would need a default of `T`.
impl<T> Default for PrologueInputs<'_, T> {
    fn default() -> Self {
        Self { x: &[], x2: &[], stats: &[], norm_weight: &[], norm_bias: &[], norm: &[] }
    }
}

impl Prologue {
    /// Draws a random prologue for an input of `channels` channels.
    pub(crate) fn random(draw: &mut Draw<'_>, channels: usize, norms: &[Norm]) -> Self {
        let norm = draw.of(norms);
        let joined = if channels > 4 && !norm.is_of_rows() && draw.flip() { channels - 4 } else { 0 };
        Self { joined, norm, f32_input: draw.flip() }
    }

    /// Returns why the prologue does not fit an input of `rows` rows and `channels` channels, if it does not.
    pub(crate) fn refusal(&self, rows: usize, channels: usize) -> Option<&'static str> {
        let joins = self.joined == 0 || (self.joined < channels && (channels - self.joined).is_multiple_of(4));
        let images = match self.norm {
            Norm::Channels { images, .. } => images,
            Norm::None | Norm::Rows { .. } => 1,
        };
        if !joins {
            return Some("`joined` must leave a multiple of four channels to `x`");
        }
        if self.joined > 0 && self.norm.is_of_rows() {
            return Some("`rows` are normalised of one tensor only");
        }
        (images == 0 || !rows.is_multiple_of(images)).then_some("`images` must divide the rows")
    }

    /// Number of channels of `x`, without those of `x2`.
    pub(crate) fn first(&self, channels: usize) -> usize {
        channels - self.joined
    }

    /// Whether CPU forms can read the rows of `x` as they are. They hold f32 in any case.
    fn is_plain(&self) -> bool {
        self.joined == 0 && self.norm == Norm::None
    }

    /// Returns the number of rows of each image.
    pub(crate) fn per_image(&self, rows: usize) -> usize {
        rows / self.images()
    }

    fn images(&self) -> usize {
        if let Norm::Channels { images, .. } = self.norm { images } else { 1 }
    }

    /// Returns the operand `x`. `lead` is the input's shape without the channels.
    pub(crate) fn x(&self, lead: &[usize], channels: usize) -> Operand {
        let dtype = if self.f32_input { DType::F32 } else { DType::Elem };
        Operand::read(names::X, [lead, &[self.first(channels)]].concat()).dtype(dtype)
    }

    /// Returns the operands `x2`, `stats`, `norm_weight`, `norm_bias` and `norm`. `lead` is the input's shape without
    /// the channels.
    pub(crate) fn operands(&self, lead: &[usize], channels: usize) -> [Operand; OPERANDS] {
        let rows = lead.iter().product();
        let (by_row, by_channel) = (self.norm.is_of_rows(), matches!(self.norm, Norm::Channels { .. }));
        [
            Operand::read(names::X2, [lead, &[self.joined]].concat()).optional(self.joined > 0),
            Operand::read(names::STATS, row_moments::shape(rows, channels)).dtype(DType::F32).optional(by_row),
            Operand::read(names::NORM_WEIGHT, [channels]).optional(by_row),
            Operand::read(names::NORM_BIAS, [channels]).optional(by_row),
            Operand::read(names::NORM, [self.images(), 2, channels]).dtype(DType::F32).optional(by_channel),
        ]
    }

    /// Returns the switches of `shaders/common/prologue.wgsl`. `per_tile` says that every tile of rows belongs to one
    /// image, which the kernel then enters.
    pub(crate) fn constants(&self, per_tile: bool) -> [(&'static str, u32); 9] {
        let (by_channel, activation) = match self.norm {
            Norm::Channels { activation, .. } => (true, activation),
            Norm::None | Norm::Rows { .. } => (false, Activation::None),
        };
        [
            ("X_F32", self.f32_input.into()),
            ("TOUCHED", (self.f32_input || self.norm != Norm::None).into()),
            ("HAS_X2", (self.joined > 0).into()),
            ("NORM_ROWS", self.norm.is_of_rows().into()),
            ("NORM_CHANNELS", by_channel.into()),
            // Scales of one image are loaded once for many rows, and ahead of them.
            ("NORM_IMAGE", (by_channel && (per_tile || self.images() == 1)).into()),
            ("NORM_IMAGES", (by_channel && !per_tile && self.images() > 1).into()),
            ("NORM_ENTERS", (by_channel && per_tile && self.images() > 1).into()),
            ("NORM_ACTIVATION", activation.code()),
        ]
    }

    /// Returns the last fields of the shader's `Params`.
    pub(crate) fn params(&self, rows: usize, channels: usize) -> Vec<Param> {
        let first4 = self.first(channels).div_ceil(4);
        let mut params = vec![Param::size("first4", first4), Param::size("positions", self.per_image(rows))];
        if let Norm::Rows { eps } = self.norm {
            params.extend([Param::size("channels", channels), Param::F("eps", eps)]);
        }
        params
    }

    /// Returns this prologue with the operation `op` added, or `None` if it cannot be added.
    pub(crate) fn with(&self, channels: usize, op: &PrologueOp) -> Option<Self> {
        match *op {
            PrologueOp::Concat { channels: joined } => {
                let fits = self.joined == 0 && !self.norm.is_of_rows() && (channels - joined).is_multiple_of(4);
                fits.then(|| Self { joined, ..self.clone() })
            }
            PrologueOp::Normalise(norm) => self.is_plain().then(|| Self { norm, ..self.clone() }),
            PrologueOp::CastF32 => (!self.f32_input).then(|| Self { f32_input: true, ..self.clone() }),
            PrologueOp::Upsample | PrologueOp::MergeMoments { .. } => None,
        }
    }

    /// Computes the whole input in f64, as the folded steps would write it.
    pub(crate) fn reference(&self, channels: usize, inputs: PrologueInputs<'_, f64>) -> Vec<f64> {
        let PrologueInputs { x, x2, stats, norm_weight, norm_bias, norm } = inputs;
        let first = self.first(channels);
        let rows = x.len() / first;
        let blocks = channels.div_ceil(32);
        let mut all = Vec::with_capacity(rows * channels);
        for row in 0..rows {
            let (mut mean, mut deviation) = (0.0, 1.0);
            if let Norm::Rows { eps } = self.norm {
                let (means, variances) = stats[2 * row * blocks..][..2 * blocks].split_at(blocks);
                // Every channel has the mean and the variance of its block.
                mean = (0..channels).map(|c| means[c / 32]).sum::<f64>() / channels as f64;
                let square = |c: usize| variances[c / 32] + (means[c / 32] - mean).powi(2);
                deviation = ((0..channels).map(square).sum::<f64>() / channels as f64 + f64::from(eps)).sqrt();
            }
            for c in 0..channels {
                let v = if c < first { x[row * first + c] } else { x2[row * self.joined + c - first] };
                all.push(match self.norm {
                    Norm::None => v,
                    Norm::Rows { .. } => (v - mean) / deviation * norm_weight[c] + norm_bias[c],
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

    /// Returns a view of the operands that CPU forms read row by row.
    pub(crate) fn rows<'a>(&'a self, rows: usize, channels: usize, inputs: PrologueInputs<'a, f32>) -> Rows<'a> {
        Rows { prologue: self, channels, per_image: self.per_image(rows), inputs }
    }
}

/// Rows of an input on the CPU, with the prologue that is applied to them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    prologue: &'a Prologue,
    channels: usize,
    per_image: usize,
    inputs: PrologueInputs<'a, f32>,
}

impl<'a> Rows<'a> {
    /// Returns the number of rows.
    fn count(&self) -> usize {
        self.inputs.x.len() / self.prologue.first(self.channels)
    }

    /// Whether the prologue leaves the rows as they lie in memory.
    pub(crate) fn are_plain(&self) -> bool {
        self.prologue.is_plain()
    }

    #[inline(always)]
    fn read(&self, first: usize, out: &mut [f32]) {
        let (own, joined) = (self.prologue.first(self.channels), self.prologue.joined);
        for (i, out) in out.chunks_exact_mut(self.channels).enumerate() {
            let row = first + i;
            let (left, right) = out.split_at_mut(own);
            self.read_part(row, 0, &self.inputs.x[row * own..][..own], left);
            if joined > 0 {
                self.read_part(row, own, &self.inputs.x2[row * joined..][..joined], right);
            }
        }
    }

    /// Writes the channels of a row that come from one tensor. `x` holds them, and `at` is the first channel's number.
    #[inline(always)]
    fn read_part(&self, row: usize, at: usize, x: &[f32], out: &mut [f32]) {
        match self.prologue.norm {
            Norm::None => out.copy_from_slice(x),
            Norm::Rows { eps } => {
                let [_, both, blocks] = row_moments::shape(1, self.channels);
                let moments = &self.inputs.stats[row * both * blocks..][..both * blocks];
                let (mean, rstd) = row_moments::merged(self.channels, moments, eps);
                let affine = self.inputs.norm_weight[at..].iter().zip(&self.inputs.norm_bias[at..]);
                out.iter_mut().zip(x).zip(affine).for_each(|((out, x), (w, b))| *out = (x - mean) * rstd * w + b);
            }
            Norm::Channels { activation, .. } => {
                let of_image = &self.inputs.norm[row / self.per_image * 2 * self.channels..][..2 * self.channels];
                let (scale, offset) = of_image.split_at(self.channels);
                let affine = scale[at..].iter().zip(&offset[at..]);
                out.iter_mut().zip(x).zip(affine).for_each(|((out, x), (s, o))| *out = x * s + o);
                activate_all(activation, out);
            }
        }
    }

    /// Writes rows from `first` on until `out` is full, on one thread or on all of them.
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

    /// Returns some of the rows: those in memory if the prologue does not change them, otherwise computed in `scratch`,
    /// on one thread or on all of them.
    pub(crate) fn ready<'s>(&self, rows: Range<usize>, scratch: &'s mut Vec<f32>, threads: Threads) -> &'s [f32]
    where
        'a: 's,
    {
        if self.are_plain() {
            return &self.inputs.x[rows.start * self.channels..rows.end * self.channels];
        }
        scratch.resize(rows.len() * self.channels, 0.0);
        self.make_ready(rows.start, scratch, threads);
        scratch
    }

    /// Calls `then` with blocks of `block` rows and the number of each block's first row. All threads compute a block
    /// first, unless the prologue does not change the rows.
    pub(crate) fn in_blocks(&self, block: usize, mut then: impl FnMut(usize, &[f32])) {
        let rows = self.count();
        let len = if self.are_plain() { 0 } else { block.min(rows) * self.channels };
        // Not grown from nothing, which would write the zeros.
        let mut scratch = vec![0.0; len];
        for first in (0..rows).step_by(block) {
            then(first, self.ready(first..rows.min(first + block), &mut scratch, Threads::All));
        }
    }

    /// Calls `then` as [`in_blocks`](Self::in_blocks) does, for a product with weights that every block reads again:
    /// with all rows at once if the prologue does not change them, otherwise with blocks that make up for it.
    pub(crate) fn in_large_blocks(&self, then: impl FnMut(usize, &[f32])) {
        // 4 MiB of scratch memory.
        const VALUES: usize = 1 << 20;
        let block = if self.are_plain() { self.count() } else { (VALUES / self.channels).max(TILE) };
        self.in_blocks(block, then);
    }
}
