//! The configuration files of a model's parts, as they lie beside the weights, and the built-in presets.
//!
//! A model is a directory: `model.json` (name and defaults), `unet/config.json`, `decoder/config.json`,
//! `text_encoder/config.json` and `scheduler/config.json`, and `vae/config.json` where there is a full VAE (a model
//! without `decoder` decodes with it). Unknown keys are refused, so that a misspelt key never
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
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Pixels per latent element in each direction: the decoder doubles three times.
pub const PIXELS_PER_LATENT: usize = 8;
/// Pictures are multiples of this: MobileDiffusion's UNet halves the latent twice.
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
const MINI: Texts<&str> = [
    Some(include_str!("../checkpoints/mini/model.json")),
    Some(include_str!("../checkpoints/mini/unet/config.json")),
    Some(include_str!("../checkpoints/mini/decoder/config.json")),
    Some(include_str!("../checkpoints/mini/vae/config.json")),
    Some(include_str!("../checkpoints/mini/text_encoder/config.json")),
    Some(include_str!("../checkpoints/mini/scheduler/config.json")),
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
            "mini" => Self::from_texts(Path::new("checkpoints/mini"), MINI),
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
