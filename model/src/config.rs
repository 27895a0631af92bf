//! The configuration files of a model's parts, as they lie beside the weights, and the built-in presets.
//!
//! A model is a directory: `model.json` (name and defaults), `unet/config.json`, `decoder/config.json`,
//! `text_encoder/config.json` and `scheduler/config.json`, and `vae/config.json` where there is a full VAE (a model
//! without `decoder` decodes with it). Unknown keys are refused, so that a misspelt key never
//! silently becomes a default; only the text encoder's file, which transformers writes, may hold more than is read.

mod vae;
mod validate;

pub use vae::VaeConfig;

use crate::error::ModelError;
use crate::json::{parse, read_text};
use mobilediffusion_kernels::{Activation, Phi, Prediction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Pixels per latent element in each direction: the decoder doubles three times.
pub const PIXELS_PER_LATENT: usize = 8;
/// Pictures are multiples of this: the UNet halves the latent twice.
pub const SIZE_MULTIPLE: usize = 4 * PIXELS_PER_LATENT;

/// Everything that is fixed before weights are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// `model.json`
    #[serde(rename = "model")]
    pub defaults: Defaults,
    /// `unet/config.json`
    pub unet: UnetConfig,
    /// `decoder/config.json`, unless pictures are decoded by the full VAE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<DecoderConfig>,
    /// `vae/config.json`, if there is a full VAE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<VaeConfig>,
    /// `text_encoder/config.json`
    pub text_encoder: TextEncoderConfig,
    /// `scheduler/config.json`
    pub scheduler: SchedulerConfig,
}

/// `model.json`: what the model is called and how a picture is made unless asked otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Name of the model.
    pub name: String,
    /// Width and height of a picture, in pixels.
    pub image_size: usize,
    /// How a picture is sampled.
    pub sampler: Sampler,
    /// Steps of the sampler.
    pub steps: usize,
    /// Weight of the text against the empty prompt; 1 is without guidance.
    pub guidance: f32,
    /// One sentence about the model.
    #[serde(default)]
    pub description: String,
}

/// How the networks are walked from noise to a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// DDIM, tens of steps, with guidance.
    Ddim,
    /// UFOGen's: one step, or up to four with fresh noise between them; without guidance.
    OneStep,
}

/// `unet/config.json`: the MobileDiffusion UNet of three levels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetConfig {
    /// `MobileDiffusionUNet`
    #[serde(rename = "_class_name", default = "UnetConfig::class_name")]
    pub class_name: String,
    /// Latent height and width it was trained for; other sizes work too.
    pub sample_size: usize,
    /// Channels of the latent.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Widths of the three levels, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in each of the two levels down.
    pub layers_down: Vec<usize>,
    /// Residual blocks of the middle module.
    pub layers_mid: usize,
    /// Residual blocks in each of the two levels up, innermost first.
    pub layers_up: Vec<usize>,
    /// Transformer layers in each stack of a level down.
    pub transformer_depth_down: Vec<usize>,
    /// Transformer layers in each stack of the middle.
    pub transformer_depth_mid: Vec<usize>,
    /// Transformer layers in each stack of a level up.
    pub transformer_depth_up: Vec<usize>,
    /// Where the transformer layers attend to the picture itself as well as to the text.
    pub self_attention: SelfAttention,
    /// Width of the text's tokens.
    pub cross_attention_dim: usize,
    /// Width of an attention head.
    pub attention_head_dim: usize,
    /// What turns attention scores into weights.
    pub attention_phi: Phi,
    /// Scale of the relu weights: `1/num_keys`.
    pub attention_phi_scale: String,
    /// Whether self-attention uses its keys as values too (`attn1.to_kv`).
    pub share_kv_self_attention: bool,
    /// Inner width of the feed-forward layer, in widths of the level.
    pub ff_mult: usize,
    /// `swiglu`
    pub ff_activation: String,
    /// `convnext`
    pub sep_kind: String,
    /// Kernel size of the depthwise convolution: 3.
    pub sep_kernel: usize,
    /// Hidden width of the separable block, in widths of what `sep_width_of` names.
    pub sep_expansion: usize,
    /// `out`
    pub sep_width_of: String,
    /// Width of the time embedding.
    pub time_embed_dim: usize,
    /// Number of waves of the timestep, cosines and sines together.
    pub time_proj_dim: usize,
    /// Whether cosines come first: true.
    pub flip_sin_to_cos: bool,
    /// Shift of the waves' frequencies: 0.
    pub freq_shift: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' group norms and of the last one.
    pub norm_eps: f32,
    /// Epsilon of the group norm in front of a transformer stack.
    pub transformer_norm_eps: f32,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f32,
    /// What the network predicts.
    pub prediction_type: Prediction,
}

impl UnetConfig {
    const CLASS_NAME: &str = "MobileDiffusionUNet";

    fn class_name() -> String {
        Self::CLASS_NAME.to_owned()
    }
}

/// The UNet's places with self-attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfAttention {
    /// The second level down.
    pub down1: bool,
    /// The middle module.
    pub mid: bool,
    /// The first level up.
    pub up0: bool,
}

/// `decoder/config.json`: the light decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// `LightDecoder`
    #[serde(rename = "_class_name", default = "DecoderConfig::class_name")]
    pub class_name: String,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Colours: 3.
    pub out_channels: usize,
    /// Widths from the picture to the latent.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each block, from the latent to the picture.
    pub layers_per_up_block: Vec<usize>,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms.
    pub norm_eps: f32,
    /// By what the encoder's latents were multiplied to have unit deviation; the decoder divides by it.
    pub scaling_factor: f32,
}

impl DecoderConfig {
    const CLASS_NAME: &str = "LightDecoder";

    fn class_name() -> String {
        Self::CLASS_NAME.to_owned()
    }
}

/// `text_encoder/config.json`: transformers' `CLIPTextConfig`. Keys that only training or transformers itself needs
/// (`architectures`, `bos_token_id`, `torch_dtype` and so on) are accepted and ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextEncoderConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Tokens of an encoded text, marks included.
    pub max_position_embeddings: usize,
    /// `quick_gelu` or `gelu`
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f32,
}

/// `scheduler/config.json`: the noise schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Steps of training: timesteps run from 0 to one less.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// `scaled_linear`: the roots of the betas are evenly spaced.
    pub beta_schedule: String,
    /// What the network predicts; the same as in the UNet's file.
    pub prediction_type: Prediction,
}

/// The files of a model's directory, in the order of [`ModelConfig`]'s fields.
const FILES: [&str; 6] = [
    "model.json",
    "unet/config.json",
    "decoder/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/config.json",
];

/// The contents of [`FILES`], none of a file that is not there.
type Texts<T> = [Option<T>; FILES.len()];

/// The checkpoint that comes with the sources.
const TINY: Texts<&str> = [
    Some(include_str!("../checkpoints/tiny/model.json")),
    Some(include_str!("../checkpoints/tiny/unet/config.json")),
    Some(include_str!("../checkpoints/tiny/decoder/config.json")),
    None,
    Some(include_str!("../checkpoints/tiny/text_encoder/config.json")),
    Some(include_str!("../checkpoints/tiny/scheduler/config.json")),
];

impl ModelConfig {
    /// Names of the built-in presets.
    pub const PRESETS: &[&str] = &["mobilediffusion", "tiny"];

    /// Reads and validates the files of a model's directory. Either of `decoder/config.json` and `vae/config.json` may
    /// be missing.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be read, [`ModelError::Json`] if it does not parse, else
    /// [`ModelError::Config`] as [`Self::validate`].
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let mut texts: Texts<String> = Default::default();
        for (text, file) in texts.iter_mut().zip(FILES) {
            let path = dir.join(file);
            let needed = match file {
                "decoder/config.json" => !dir.join("vae/config.json").is_file(),
                "vae/config.json" => false,
                _ => true,
            };
            if needed || path.is_file() {
                *text = Some(read_text(&path)?);
            }
        }
        Self::from_texts(dir, texts.each_ref().map(Option::as_deref))
    }

    /// A built-in model: `mobilediffusion` is the full-size one of the paper, as deployed (512 pixels, one step);
    /// `tiny` is that of the checkpoint in `model/checkpoints/tiny`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if there is no such preset.
    pub fn preset(name: &str) -> Result<Self, ModelError> {
        match name {
            "mobilediffusion" => {
                let path = Path::new("presets/mobilediffusion.json");
                let config: Self = parse(path, include_str!("../presets/mobilediffusion.json"))?;
                config.validate()?;
                Ok(config)
            }
            "tiny" => Self::from_texts(Path::new("checkpoints/tiny"), TINY),
            _ => Err(ModelError::Config {
                path: "presets".into(),
                key: "name".into(),
                expected: Self::PRESETS.join(" or "),
                found: name.into(),
            }),
        }
    }

    /// Parses and validates the contents of [`FILES`]; `dir` is for errors only.
    fn from_texts(
        dir: &Path,
        [model, unet, decoder, vae, text_encoder, scheduler]: Texts<&str>,
    ) -> Result<Self, ModelError> {
        fn part<T: DeserializeOwned>(path: PathBuf, text: Option<&str>) -> Result<T, ModelError> {
            // Nothing parses as nothing: an error that names the file.
            parse(&path, text.unwrap_or_default())
        }
        let path = |file: usize| dir.join(FILES[file]);
        let config = Self {
            defaults: part(path(0), model)?,
            unet: part(path(1), unet)?,
            decoder: decoder.map(|text| parse(&path(2), text)).transpose()?,
            vae: vae.map(|text| parse(&path(3), text)).transpose()?,
            text_encoder: part(path(4), text_encoder)?,
            scheduler: part(path(5), scheduler)?,
        };
        config.validate_in(dir)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
