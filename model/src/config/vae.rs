//! `vae/config.json`: the full VAE, in the keys of diffusers' `AutoencoderKL`.

use super::PIXELS_PER_LATENT;
use super::validate::{Check, LAYERS, WIDTH};
use crate::error::ModelError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The full VAE (specification, section 2.1). Other keys than these are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// `AutoencoderKL`
    #[serde(rename = "_class_name", default = "VaeConfig::class_name")]
    pub class_name: String,
    /// Colours of the picture that is encoded: 3.
    pub in_channels: usize,
    /// Colours of the picture that is decoded: 3.
    pub out_channels: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Widths from the picture to the latent.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each block of the encoder; the decoder's blocks have one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// What latents are multiplied by to have unit deviation; the decoder divides by it.
    pub scaling_factor: f32,
    /// `silu`
    #[serde(default = "VaeConfig::act_fn")]
    pub act_fn: String,
    /// `DownEncoderBlock2D` for every level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_block_types: Option<Vec<String>>,
    /// `UpDecoderBlock2D` for every level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_block_types: Option<Vec<String>>,
    /// Whether the blocks between the levels attend: true.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Whether the encoder ends in `quant_conv`: true.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether the decoder begins with `post_quant_conv`: true.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Absent: latents are scaled, not shifted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift_factor: Option<f32>,
    /// Absent, as `shift_factor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_mean: Option<Vec<f32>>,
    /// Absent, as `shift_factor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_std: Option<Vec<f32>>,
    /// For diffusers alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_size: Option<usize>,
    /// For diffusers alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_upcast: Option<bool>,
    /// For diffusers alone.
    #[serde(rename = "_diffusers_version", default, skip_serializing_if = "Option::is_none")]
    pub diffusers_version: Option<String>,
    /// For diffusers alone.
    #[serde(rename = "_name_or_path", default, skip_serializing_if = "Option::is_none")]
    pub name_or_path: Option<String>,
}

fn yes() -> bool {
    true
}

impl VaeConfig {
    const CLASS_NAME: &str = "AutoencoderKL";

    /// Epsilon of every group norm: fixed in diffusers.
    pub const NORM_EPS: f32 = 1e-6;

    fn class_name() -> String {
        Self::CLASS_NAME.to_owned()
    }

    fn act_fn() -> String {
        "silu".to_owned()
    }

    /// Refuses what [`ModelConfig::validate`](super::ModelConfig::validate) would refuse in this file alone; `path` is
    /// for errors only.
    ///
    /// # Errors
    /// [`ModelError::Config`]
    pub fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        check.equal("_class_name", self.class_name.as_str(), Self::CLASS_NAME)?;
        check.equal("in_channels", self.in_channels, 3)?;
        check.equal("out_channels", self.out_channels, 3)?;
        check.within("latent_channels", self.latent_channels, WIDTH)?;
        check.within("layers_per_block", self.layers_per_block, LAYERS)?;
        check.widths(&self.block_out_channels, PIXELS_PER_LATENT.ilog2() as usize + 1, self.norm_num_groups)?;
        let deepest = self.block_out_channels.last().copied().unwrap_or_default();
        check.head("block_out_channels, the last, which is one attention head", deepest)?;
        check.scaling_factor(self.scaling_factor)?;
        self.validate_kinds(&check)
    }

    /// The switches of diffusers of which there is one position here.
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
