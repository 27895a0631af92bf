//! The configuration files of a model's parts, as they lie beside the weights, and the built-in presets.
//!
//! A model is a directory: `model.json` (name and defaults), `unet/config.json`, `decoder/config.json`,
//! `text_encoder/config.json` and `scheduler/config.json`, and `vae/config.json` where there is a full VAE (a model
//! without `decoder` decodes with it). A one-step model may bring the UNet it was made of along, for DDIM:
//! `unet_base/config.json`. Unknown keys are refused, so that a misspelt key never
//! silently becomes a default; only the text encoder's file, which transformers writes, may hold more than is read.

mod unet;
mod vae;
mod validate;

pub use unet::{
    FeedForward, MiddleSelfAttention, MobileDiffusion, SelfAttention, SepKind, SepSampler, SepWidth, StableDiffusion,
    UnetConfig,
};
pub use vae::VaeConfig;

use crate::error::ModelError;
use crate::json::{parse, read_text};
use mobilediffusion_kernels::{Activation, Prediction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::LazyLock;

/// Pixels per latent element in each direction: the decoder doubles three times.
pub const PIXELS_PER_LATENT: usize = 8;
/// The sides of pictures are multiples of this, or of more: see [`ModelConfig::size_multiple`].
pub const SIZE_MULTIPLE: usize = 4 * PIXELS_PER_LATENT;
/// Longest side of a picture in pixels.
pub const MOST_PIXELS: usize = 8192;

/// Everything that is fixed before weights are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// `model.json`
    #[serde(rename = "model")]
    pub defaults: Defaults,
    /// `unet/config.json`
    pub unet: UnetConfig,
    /// `unet_base/config.json`, if a one-step model brings the UNet along that it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet_base: Option<UnetConfig>,
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

/// The files of a model's directory.
mod file {
    pub(super) const MODEL: &str = "model.json";
    pub(super) const UNET: &str = "unet/config.json";
    pub(super) const UNET_BASE: &str = "unet_base/config.json";
    pub(super) const DECODER: &str = "decoder/config.json";
    pub(super) const VAE: &str = "vae/config.json";
    pub(super) const TEXT_ENCODER: &str = "text_encoder/config.json";
    pub(super) const SCHEDULER: &str = "scheduler/config.json";
}

/// The checkpoint that comes with the sources.
const MINI: [(&str, &str); 7] = [
    (file::MODEL, include_str!("../checkpoints/mini/model.json")),
    (file::UNET, include_str!("../checkpoints/mini/unet/config.json")),
    (file::UNET_BASE, include_str!("../checkpoints/mini/unet_base/config.json")),
    (file::DECODER, include_str!("../checkpoints/mini/decoder/config.json")),
    (file::VAE, include_str!("../checkpoints/mini/vae/config.json")),
    (file::TEXT_ENCODER, include_str!("../checkpoints/mini/text_encoder/config.json")),
    (file::SCHEDULER, include_str!("../checkpoints/mini/scheduler/config.json")),
];

/// The full-size model of the paper.
static MOBILEDIFFUSION: LazyLock<Value> = LazyLock::new(|| built_in(include_str!("../presets/mobilediffusion.json")));

/// What the alternatives change in its UNet.
static ALTERNATIVES: LazyLock<Value> = LazyLock::new(|| built_in(include_str!("../presets/alternatives.json")));

/// Stable Diffusion 1.5.
static SD15: LazyLock<Value> = LazyLock::new(|| built_in(include_str!("../presets/sd15.json")));

fn built_in(text: &str) -> Value {
    serde_json::from_str(text).expect("a built-in preset is JSON")
}

impl ModelConfig {
    /// Names of the built-in presets.
    pub const PRESETS: &[&str] = &["mobilediffusion", "alt-1", "alt-2", "alt-4", "alt-7", "sd15", "mini"];

    /// Reads and validates the files of a model's directory. Either of `decoder/config.json` and `vae/config.json` may
    /// be missing, and `unet_base/config.json` where there is no such folder.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be read, [`ModelError::Json`] if it does not parse, else
    /// [`ModelError::Config`] as [`Self::validate`].
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        Self::from_files(dir, &|file| {
            let path = dir.join(file);
            let needed = match file {
                file::DECODER => !dir.join(file::VAE).is_file(),
                file::VAE => false,
                file::UNET_BASE => path.parent().is_some_and(Path::is_dir),
                _ => true,
            };
            if needed || path.is_file() { read_text(&path).map(Some) } else { Ok(None) }
        })
    }

    /// Parses and validates the contents of files, of which those that may be missing may be none; `dir` is for errors only.
    fn from_files(dir: &Path, text_of: TextOf<'_>) -> Result<Self, ModelError> {
        fn optional<T: DeserializeOwned>(dir: &Path, file: &str, text_of: TextOf<'_>) -> Result<Option<T>, ModelError> {
            text_of(file)?.map(|text| parse(&dir.join(file), &text)).transpose()
        }
        fn needed<T: DeserializeOwned>(dir: &Path, file: &str, text_of: TextOf<'_>) -> Result<T, ModelError> {
            // Nothing parses as nothing: an error that names the file.
            parse(&dir.join(file), &text_of(file)?.unwrap_or_default())
        }
        let config = Self {
            defaults: needed(dir, file::MODEL, text_of)?,
            unet: needed(dir, file::UNET, text_of)?,
            unet_base: optional(dir, file::UNET_BASE, text_of)?,
            decoder: optional(dir, file::DECODER, text_of)?,
            vae: optional(dir, file::VAE, text_of)?,
            text_encoder: needed(dir, file::TEXT_ENCODER, text_of)?,
            scheduler: needed(dir, file::SCHEDULER, text_of)?,
        };
        config.validate_in(dir)?;
        Ok(config)
    }

    /// A built-in model: `mobilediffusion` is the full-size one of the paper, as deployed (512 pixels, one step); `alt-*`
    /// are the specification's other readings of the paper (section 1.8); `sd15` is Stable Diffusion 1.5, the paper's
    /// baseline; `mini` is that of the checkpoint in `model/checkpoints/mini`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if there is no such preset.
    pub fn preset(name: &str) -> Result<Self, ModelError> {
        let whole = |value: Value| {
            let config: Self = parse(&Path::new("presets").join(name), &value.to_string())?;
            config.validate()?;
            Ok(config)
        };
        match name {
            "mobilediffusion" => whole(MOBILEDIFFUSION.clone()),
            "sd15" => whole(SD15.clone()),
            _ if ALTERNATIVES.get(name).is_some() => {
                let mut value = MOBILEDIFFUSION.clone();
                value["model"]["name"] = name.into();
                for (key, switch) in ALTERNATIVES[name].as_object().into_iter().flatten() {
                    value["unet"][key] = switch.clone();
                }
                whole(value)
            }
            "mini" => Self::from_files(Path::new("checkpoints/mini"), &|file| {
                Ok(MINI.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned()))
            }),
            _ => Err(ModelError::Config {
                path: "presets".into(),
                key: "name".into(),
                expected: Self::PRESETS.join(" or "),
                found: name.into(),
            }),
        }
    }

    /// The UNet that a sampler walks: in a one-step model, DDIM's is the one that it was made of, if that has settings of
    /// its own.
    pub fn unet_of(&self, sampler: Sampler) -> &UnetConfig {
        match (self.defaults.sampler, sampler, &self.unet_base) {
            (Sampler::OneStep, Sampler::Ddim, Some(base)) => base,
            _ => &self.unet,
        }
    }

    /// Pixels that the sides of a picture are multiples of: the UNets halve the latent.
    pub fn size_multiple(&self) -> usize {
        let halvings = |unet: &UnetConfig| PIXELS_PER_LATENT * unet.latent_multiple();
        std::iter::once(&self.unet).chain(&self.unet_base).map(halvings).fold(SIZE_MULTIPLE, usize::max)
    }
}

/// Gives the contents of a file of a model's directory, none if it is not there and need not be.
type TextOf<'a> = &'a dyn Fn(&str) -> Result<Option<String>, ModelError>;

#[cfg(test)]
mod tests;
