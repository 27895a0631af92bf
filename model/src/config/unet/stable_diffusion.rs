//! Configuration of Stable Diffusion's UNet, the paper's baseline, in diffusers' keys.

use crate::config::validate::{Check, LAYERS, WIDTH};
use crate::error::ModelError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Stable Diffusion 1's UNet, in the keys of diffusers' `UNet2DConditionModel`: softmax attention, `geglu`
/// feed-forward layers, 1x1 convolutions around the transformers, separate keys and values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StableDiffusion {
    /// Class name, always `UNet2DConditionModel`.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Version of diffusers that wrote the file. It is not used.
    #[serde(rename = "_diffusers_version", default, skip_serializing_if = "Option::is_none")]
    pub diffusers_version: Option<String>,
    /// Name that diffusers loaded the network from. It is not used.
    #[serde(rename = "_name_or_path", default, skip_serializing_if = "Option::is_none")]
    pub name_or_path: Option<String>,
    /// Latent height and width of the training. Other sizes work too.
    pub sample_size: usize,
    /// Number of channels of the latent.
    pub in_channels: usize,
    /// Number of channels of the prediction.
    pub out_channels: usize,
    /// Whether latents are first moved from [0, 1] to [-1, 1], always false.
    pub center_input_sample: bool,
    /// Whether cosines come before sines, always true.
    pub flip_sin_to_cos: bool,
    /// Shift of the sinusoids' frequencies, always 0.
    pub freq_shift: usize,
    /// Kind of each level on the way down, outermost first: `CrossAttnDownBlock2D` or `DownBlock2D`.
    pub down_block_types: Vec<String>,
    /// Kind of each level on the way up, innermost first: `UpBlock2D` or `CrossAttnUpBlock2D`. Must mirror
    /// `down_block_types`.
    pub up_block_types: Vec<String>,
    /// Widths of the levels, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Number of residual blocks of each level on the way down. Levels on the way up have one more.
    pub layers_per_block: usize,
    /// Padding of the downsamplers, always 1.
    pub downsample_padding: usize,
    /// Divisor of the middle block's residuals, always 1.
    pub mid_block_scale_factor: f32,
    /// Activation, always `silu`.
    pub act_fn: String,
    /// Number of groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Epsilon of the group normalisations in residual blocks and before the last convolution.
    pub norm_eps: f32,
    /// Width of the text's tokens.
    pub cross_attention_dim: usize,
    /// Number of heads of every attention layer. The name is diffusers' and misleading.
    pub attention_head_dim: usize,
}

/// Returns the further keys that newer versions of diffusers write, with the only values that are implemented here.
fn defaults() -> Value {
    json!({
        "addition_embed_type": null, "addition_embed_type_num_heads": 64, "addition_time_embed_dim": null,
        "attention_type": "default", "class_embed_type": null, "class_embeddings_concat": false,
        "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": null, "dropout": 0.0,
        "dual_cross_attention": false, "encoder_hid_dim": null, "encoder_hid_dim_type": null,
        "mid_block_only_cross_attention": null, "mid_block_type": "UNetMidBlock2DCrossAttn",
        "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false,
        "projection_class_embeddings_input_dim": null, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false,
        "resnet_time_scale_shift": "default", "reverse_transformer_layers_per_block": null,
        "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim": null,
        "time_embedding_type": "positional", "timestep_post_act": null, "transformer_layers_per_block": 1,
        "upcast_attention": false, "use_linear_projection": false,
    })
}

/// Removes the keys of [`defaults`] that have their implemented value.
pub(super) fn drop_defaults(config: &mut Value) {
    let defaults = defaults();
    if let Some(map) = config.as_object_mut() {
        map.retain(|key, value| defaults.get(key) != Some(value));
    }
}

impl StableDiffusion {
    pub(super) const CLASS_NAME: &str = "UNet2DConditionModel";

    /// Inner width of the feed-forward layers, as a multiple of the level's width; fixed in diffusers.
    pub(crate) const FF_MULT: usize = 4;
    /// Epsilon of the group normalisation before a transformer stack; fixed in diffusers.
    pub(crate) const TRANSFORMER_NORM_EPS: f32 = 1e-6;
    /// Epsilon of the layer normalisations; fixed in diffusers.
    pub(crate) const LAYER_NORM_EPS: f32 = 1e-5;

    /// Returns the number of sinusoids of the timestep.
    pub(crate) fn time_proj_dim(&self) -> usize {
        self.block_out_channels[0]
    }

    /// Returns the width of the time embedding.
    pub(crate) fn time_embed_dim(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    /// Whether the residual blocks of a level, counted from the outermost, are followed by transformers.
    pub(crate) fn attends(&self, level: usize) -> bool {
        self.down_block_types[level] == "CrossAttnDownBlock2D"
    }

    pub(super) fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        check.equal("_class_name", self.class_name.as_str(), Self::CLASS_NAME)?;
        check.equal("center_input_sample", self.center_input_sample, false)?;
        check.equal("flip_sin_to_cos", self.flip_sin_to_cos, true)?;
        check.equal("freq_shift", self.freq_shift, 0)?;
        check.equal("downsample_padding", self.downsample_padding, 1)?;
        check.equal("mid_block_scale_factor", self.mid_block_scale_factor, 1.0)?;
        check.equal("act_fn", self.act_fn.as_str(), "silu")?;
        for (key, value) in [
            ("sample_size", self.sample_size),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("cross_attention_dim", self.cross_attention_dim),
            ("norm_num_groups", self.norm_num_groups),
            ("attention_head_dim", self.attention_head_dim),
        ] {
            check.within(key, value, WIDTH)?;
        }
        check.within("layers_per_block", self.layers_per_block, LAYERS)?;
        check.eps("norm_eps", self.norm_eps)?;
        self.validate_levels(&check)
    }

    fn validate_levels(&self, check: &Check) -> Result<(), ModelError> {
        let widths = &self.block_out_channels;
        check.within("block_out_channels, number of levels", widths.len(), 2..=8)?;
        check.list("block_out_channels", widths, widths.len(), WIDTH)?;
        check.multiple("block_out_channels[0]", widths[0], 2)?;
        let kinds = &self.down_block_types;
        let known = kinds.iter().all(|kind| matches!(kind.as_str(), "CrossAttnDownBlock2D" | "DownBlock2D"));
        let expected = format!("{} of CrossAttnDownBlock2D and DownBlock2D", widths.len());
        check.that(known && kinds.len() == widths.len(), "down_block_types", expected, format!("{kinds:?}"))?;
        let up: Vec<String> = kinds.iter().rev().map(|kind| kind.replace("Down", "Up")).collect();
        check.equal("up_block_types", &self.up_block_types, &up)?;
        // The first layer of a level on the way up continues from the level below, the others from their own level.
        // Each is joined with a skip of the level's own width, except the last one: its skip comes from the level
        // above.
        for (level, &width) in widths.iter().enumerate() {
            let below = widths.get(level + 1).copied().unwrap_or(width);
            let above = widths[level.saturating_sub(1)];
            for normed in [width, width + width, below + width, width + above] {
                check.divides("norm_num_groups", self.norm_num_groups, "normed width", normed)?;
            }
            // The middle block attends at the innermost width, whatever the kind of the innermost level.
            if self.attends(level) || level + 1 == widths.len() {
                check.divides("attention_head_dim", self.attention_head_dim, "width", width)?;
                check.head("block_out_channels / attention_head_dim", width / self.attention_head_dim)?;
            }
        }
        check.multiple("sample_size", self.sample_size, 1 << (widths.len() - 1))?;
        // On the way down, in the middle and on the way up; a transformer layer may follow each residual block.
        let layers = |level: usize| (2 * self.layers_per_block + 1) * if self.attends(level) { 2 } else { 1 };
        check.layers("layers_per_block, down_block_types", 3 + (0..widths.len()).map(layers).sum::<usize>())
    }
}
