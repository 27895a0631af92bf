//! `vae/config.json`: the full VAE, in the keys of diffusers' `AutoencoderKL`.

use super::PIXELS_PER_LATENT;
use super::validate::{Check, LAYERS, NetworkConfig, WIDTH};
use crate::error::ModelError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Configuration of the full VAE (docs/model.md, section 2.1). Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Class name, always `AutoencoderKL`.
    #[serde(rename = "_class_name", default = "VaeConfig::class_name")]
    pub class_name: String,
    /// Number of colour channels that the encoder reads, always 3.
    pub in_channels: usize,
    /// Number of colour channels that the decoder writes, always 3.
    pub out_channels: usize,
    /// Number of channels of the latent.
    pub latent_channels: usize,
    /// Widths of the four levels, from the picture to the latent.
    pub block_out_channels: Vec<usize>,
    /// Number of residual blocks of each level of the encoder. Levels of the decoder have one more.
    pub layers_per_block: usize,
    /// Number of groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Factor that gives the encoder's latents unit standard deviation. The decoder divides by it.
    pub scaling_factor: f32,
    /// Activation, always `silu`.
    #[serde(default = "VaeConfig::act_fn")]
    pub act_fn: String,
    /// Kind of each level of the encoder, always `DownEncoderBlock2D`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_block_types: Option<Vec<String>>,
    /// Kind of each level of the decoder, always `UpDecoderBlock2D`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_block_types: Option<Vec<String>>,
    /// Whether the middle blocks have attention, always true.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Whether the encoder ends with `quant_conv`, always true.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether the decoder begins with `post_quant_conv`, always true.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Shift of the latents, absent or 0: they are scaled only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift_factor: Option<f32>,
    /// Mean of each latent channel, always absent: latents are scaled only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_mean: Option<Vec<f32>>,
    /// Standard deviation of each latent channel, always absent: latents are scaled only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_std: Option<Vec<f32>>,
    /// Picture size of the training. It is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_size: Option<usize>,
    /// Whether diffusers computes in f32. It is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_upcast: Option<bool>,
    /// Version of diffusers that wrote the file. It is not used.
    #[serde(rename = "_diffusers_version", default, skip_serializing_if = "Option::is_none")]
    pub diffusers_version: Option<String>,
    /// Name that diffusers loaded the network from. It is not used.
    #[serde(rename = "_name_or_path", default, skip_serializing_if = "Option::is_none")]
    pub name_or_path: Option<String>,
}

fn yes() -> bool {
    true
}

impl VaeConfig {
    const CLASS_NAME: &str = "AutoencoderKL";

    /// Epsilon of every group normalisation; fixed in diffusers.
    pub(crate) const NORM_EPS: f32 = 1e-6;

    fn class_name() -> String {
        Self::CLASS_NAME.to_owned()
    }

    fn act_fn() -> String {
        "silu".to_owned()
    }

    /// Checks the switches of diffusers that have a single value here.
    fn validate_kinds(&self, check: &Check) -> Result<(), ModelError> {
        check.equal("act_fn", self.act_fn.as_str(), "silu")?;
        for (key, types, expected) in [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            let Some(types) = types else { continue };
            let expected = vec![expected.to_owned(); self.block_out_channels.len()];
            check.equal(key, types, &expected)?;
        }
        check.equal("mid_block_add_attention", self.mid_block_add_attention, true)?;
        check.equal("use_quant_conv", self.use_quant_conv, true)?;
        check.equal("use_post_quant_conv", self.use_post_quant_conv, true)?;
        check.that(self.shift_factor.is_none_or(|shift| shift == 0.0), "shift_factor", "null", "a number")?;
        check.that(self.latents_mean.is_none(), "latents_mean", "null", "a list")?;
        check.that(self.latents_std.is_none(), "latents_std", "null", "a list")
    }
}

impl NetworkConfig for VaeConfig {
    fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        check.equal("_class_name", self.class_name.as_str(), Self::CLASS_NAME)?;
        check.equal("in_channels", self.in_channels, 3)?;
        check.equal("out_channels", self.out_channels, 3)?;
        check.within("latent_channels", self.latent_channels, WIDTH)?;
        check.within("layers_per_block", self.layers_per_block, LAYERS)?;
        check.widths(&self.block_out_channels, PIXELS_PER_LATENT.ilog2() as usize + 1, self.norm_num_groups)?;
        let deepest = self.block_out_channels.last().copied().unwrap_or_default();
        check.head("block_out_channels, the last, which is one attention head", deepest)?;
        check.positive("scaling_factor", self.scaling_factor)?;
        self.validate_kinds(&check)
    }
}
