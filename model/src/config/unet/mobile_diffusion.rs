//! Configuration of MobileDiffusion's UNet.

use super::FeedForward;
use crate::config::validate::{Check, LAYERS, WIDTH};
use crate::config::{PIXELS_PER_LATENT, SIZE_MULTIPLE};
use crate::error::ModelError;
use mobilediffusion_kernels::{Phi, Prediction};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// MobileDiffusion's UNet of three levels (docs/model.md, section 1.1) and its alternatives (section 1.8).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MobileDiffusion {
    /// Class name, always `MobileDiffusionUNet`.
    #[serde(rename = "_class_name", default = "MobileDiffusion::class_name")]
    pub class_name: String,
    /// Latent height and width of the training. Other sizes work too.
    pub sample_size: usize,
    /// Number of channels of the latent.
    pub in_channels: usize,
    /// Number of channels of the prediction.
    pub out_channels: usize,
    /// Widths of the three levels, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Number of residual blocks in each of the two levels on the way down.
    pub layers_down: Vec<usize>,
    /// Number of residual blocks in the middle module.
    pub layers_mid: usize,
    /// Number of residual blocks in each of the two levels on the way up, innermost first.
    pub layers_up: Vec<usize>,
    /// Number of transformer layers in each stack of a level on the way down.
    pub transformer_depth_down: Vec<usize>,
    /// Number of transformer layers in each stack of the middle module.
    pub transformer_depth_mid: Vec<usize>,
    /// Number of transformer layers in each stack of a level on the way up.
    pub transformer_depth_up: Vec<usize>,
    /// Places where the transformer layers have self-attention besides cross-attention.
    pub self_attention: SelfAttention,
    /// Width of the text's tokens.
    pub cross_attention_dim: usize,
    /// Width of an attention head.
    pub attention_head_dim: usize,
    /// Function that turns attention scores into weights: softmax or relu.
    pub attention_phi: Phi,
    /// Scale of the relu weights, always `1/num_keys`.
    pub attention_phi_scale: String,
    /// Whether self-attention uses its keys as values too (`attn1.to_kv`).
    pub share_kv_self_attention: bool,
    /// Inner width of the feed-forward layers, as a multiple of the level's width.
    pub ff_mult: usize,
    /// Activation that the gates of the feed-forward layers pass through.
    pub ff_activation: FeedForward,
    /// Kind of the separable blocks.
    pub sep_kind: SepKind,
    /// Kernel size of the depthwise convolutions, always 3.
    pub sep_kernel: usize,
    /// Hidden width of a separable block, as a multiple of the width that `sep_width_of` names.
    pub sep_expansion: usize,
    /// Width that `sep_expansion` multiplies.
    pub sep_width_of: SepWidth,
    /// Samplers that are separable too; none in the chosen reading of the paper.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sep_samplers: Vec<SepSampler>,
    /// Width of the time embedding.
    pub time_embed_dim: usize,
    /// Number of sinusoids of the timestep, cosines and sines together.
    pub time_proj_dim: usize,
    /// Whether cosines come before sines, always true.
    pub flip_sin_to_cos: bool,
    /// Shift of the sinusoids' frequencies, always 0.
    pub freq_shift: usize,
    /// Number of groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Epsilon of the group normalisations in residual blocks and before the last convolution.
    pub norm_eps: f32,
    /// Epsilon of the group normalisation before a transformer stack.
    pub transformer_norm_eps: f32,
    /// Epsilon of the layer normalisations.
    pub layer_norm_eps: f32,
    /// Quantity that the network predicts.
    pub prediction_type: Prediction,
}

/// Places of a UNet that may have self-attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfAttention {
    /// Whether the second level on the way down has self-attention.
    pub down1: bool,
    /// Stacks of the middle module that have self-attention.
    pub mid: MiddleSelfAttention,
    /// Whether the first level on the way up has self-attention.
    pub up0: bool,
}

/// Stacks of the middle module that have self-attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false or a list of them")]
pub enum MiddleSelfAttention {
    /// All stacks, or none.
    All(bool),
    /// One value for each stack.
    Each(Vec<bool>),
}

/// Kind of a separable block (docs/model.md, sections 1.4 and 1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SepKind {
    /// Depthwise convolution, norm, and two pointwise convolutions with silu between them.
    Convnext,
    /// Depthwise convolution, norm, and two pointwise convolutions with a gate between them, as in the feed-forward
    /// layers.
    Glu,
    /// Two units of the kind [`Convnext`](Self::Convnext) in a row, inside one residual.
    Convnext2,
}

/// Width that the hidden width of a separable block is a multiple of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SepWidth {
    /// Output width.
    Out,
    /// Input width.
    In,
}

/// Sampler that may be separable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SepSampler {
    /// Downsampler at the end of the second level on the way down.
    Down1,
}

impl MobileDiffusion {
    const CLASS_NAME: &str = "MobileDiffusionUNet";

    fn class_name() -> String {
        Self::CLASS_NAME.to_owned()
    }

    /// Whether stack `layer` of the middle module has self-attention.
    pub(crate) fn mid_attends_itself(&self, layer: usize) -> bool {
        match &self.self_attention.mid {
            MiddleSelfAttention::All(attends) => *attends,
            MiddleSelfAttention::Each(attend) => attend[layer],
        }
    }

    /// Returns the hidden width of a separable unit from `cin` to `cout` channels.
    pub(crate) fn sep_hidden(&self, cin: usize, cout: usize) -> usize {
        let width = match self.sep_width_of {
            SepWidth::Out => cout,
            SepWidth::In => cin,
        };
        self.sep_expansion * width
    }

    pub(super) fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        self.validate_kinds(&check)?;
        for (key, value) in [
            ("sample_size", self.sample_size),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("cross_attention_dim", self.cross_attention_dim),
            ("ff_mult", self.ff_mult),
            ("sep_expansion", self.sep_expansion),
            ("time_embed_dim", self.time_embed_dim),
            ("time_proj_dim", self.time_proj_dim),
            ("norm_num_groups", self.norm_num_groups),
        ] {
            check.within(key, value, WIDTH)?;
        }
        check.multiple("sample_size", self.sample_size, SIZE_MULTIPLE / PIXELS_PER_LATENT)?;
        check.multiple("time_proj_dim", self.time_proj_dim, 2)?;
        check.eps("norm_eps", self.norm_eps)?;
        check.eps("transformer_norm_eps", self.transformer_norm_eps)?;
        check.eps("layer_norm_eps", self.layer_norm_eps)?;
        self.validate_layers(&check)?;
        self.validate_widths(&check)
    }

    /// Checks the switches: only values that the kernels implement pass.
    fn validate_kinds(&self, check: &Check) -> Result<(), ModelError> {
        check.equal("_class_name", self.class_name.as_str(), Self::CLASS_NAME)?;
        check.equal("attention_phi_scale", self.attention_phi_scale.as_str(), "1/num_keys")?;
        check.equal("sep_kernel", self.sep_kernel, 3)?;
        check.equal("flip_sin_to_cos", self.flip_sin_to_cos, true)?;
        check.equal("freq_shift", self.freq_shift, 0)
    }

    /// Checks the numbers of blocks and transformer layers.
    fn validate_layers(&self, check: &Check) -> Result<(), ModelError> {
        check.list("block_out_channels", &self.block_out_channels, 3, WIDTH)?;
        check.list("layers_down", &self.layers_down, 2, LAYERS)?;
        check.within("layers_mid", self.layers_mid, LAYERS)?;
        // A level on the way up consumes the skips of one level down and one more: the output of the convolution
        // before it.
        let up = [self.layers_down[1] + 1, self.layers_down[0] + 1];
        check.that(self.layers_up == up, "layers_up", format!("{up:?}"), format!("{:?}", self.layers_up))?;
        check.list("transformer_depth_down", &self.transformer_depth_down, 2, 0..=*LAYERS.end())?;
        check.list("transformer_depth_mid", &self.transformer_depth_mid, self.layers_mid, LAYERS)?;
        if let MiddleSelfAttention::Each(attend) = &self.self_attention.mid {
            let (layers, found) = (self.layers_mid, attend.len());
            check.that(found == layers, "self_attention.mid", format!("a boolean, or {layers} of them"), found)?;
        }
        check.that(self.sep_samplers.len() <= 1, "sep_samplers", "[] or [\"down1\"]", "a repetition")?;
        check.list("transformer_depth_up", &self.transformer_depth_up, 2, 0..=*LAYERS.end())?;
        check.equal("transformer_depth_down[0]", self.transformer_depth_down[0], 0)?;
        check.equal("transformer_depth_up[1]", self.transformer_depth_up[1], 0)?;
        let residual = self.layers_mid + self.layers_down.iter().chain(&self.layers_up).sum::<usize>();
        let down = self.layers_down[1] * self.transformer_depth_down[1];
        let up = self.layers_up[0] * self.transformer_depth_up[0];
        let keys =
            "layers_down, layers_mid, layers_up, transformer_depth_down, transformer_depth_mid, transformer_depth_up";
        check.layers(keys, residual + down + self.transformer_depth_mid.iter().sum::<usize>() + up)
    }

    /// Checks the widths that norms split into groups and attention into heads.
    fn validate_widths(&self, check: &Check) -> Result<(), ModelError> {
        let &[c0, c1, c2] = self.block_out_channels.as_slice() else { return Ok(()) };
        // Norms also see concatenations with skips. A divisor of two widths divides their sum.
        for width in [c0, c1, c2] {
            check.divides("norm_num_groups", self.norm_num_groups, "normed width", width)?;
        }
        let head = self.attention_head_dim;
        check.head("attention_head_dim", head)?;
        let outer_attention = self.transformer_depth_down[1] > 0 || self.transformer_depth_up[0] > 0;
        for width in [outer_attention.then_some(c1), Some(c2)].into_iter().flatten() {
            check.divides("attention_head_dim", head, "width", width)?;
        }
        Ok(())
    }
}
