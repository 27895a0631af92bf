//! Configuration files of a model's parts, as they lie beside the weights, and the built-in presets.
//!
//! A model is a directory:
//!
//! | file | contents |
//! |---|---|
//! | `model.json` | name and defaults |
//! | `unet/config.json` | the UNet |
//! | `unet_base/config.json` | optional: the base UNet of a one-step model, which DDIM uses |
//! | `decoder/config.json` | the light decoder; there may be no such folder where there is a full VAE |
//! | `vae/config.json` | the full VAE; there may be no such folder where there is a light decoder |
//! | `text_encoder/config.json` | the text encoder |
//! | `scheduler/config.json` | the noise schedule |
//!
//! Unknown keys are errors, so that a misspelt key never silently becomes a default. The one exception is the text
//! encoder's file: transformers writes it, and it may hold more keys than are read.

mod unet;
mod vae;
mod validate;

pub use unet::{
    FeedForward, MiddleSelfAttention, MobileDiffusion, SelfAttention, SepKind, SepSampler, SepWidth, StableDiffusion,
    UnetConfig,
};
pub use vae::VaeConfig;
pub(crate) use validate::NetworkConfig;

use crate::error::ModelError;
use crate::json::{parse, read};
use mobilediffusion_kernels::{Activation, Prediction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::LazyLock;

/// Pixels per latent element in each direction: the decoder doubles the size three times.
pub const PIXELS_PER_LATENT: usize = 8;
/// Smallest multiple, in pixels, that picture sides have with any UNet. A UNet may need a larger one, see
/// [`ModelConfig::size_multiple`].
pub(crate) const SIZE_MULTIPLE: usize = 4 * PIXELS_PER_LATENT;
/// Longest side of a picture, in pixels.
pub const MOST_PIXELS: usize = 8192;

/// Configuration of a whole model: everything that is fixed before weights are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Contents of `model.json`.
    #[serde(rename = "model")]
    pub defaults: Defaults,
    /// Contents of `unet/config.json`.
    pub unet: UnetConfig,
    /// Contents of `unet_base/config.json`: the UNet that a one-step model was fine-tuned from, if the model brings
    /// it along. DDIM uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet_base: Option<UnetConfig>,
    /// Contents of `decoder/config.json`; `None` where the full VAE decodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<DecoderConfig>,
    /// Contents of `vae/config.json`, if there is a full VAE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<VaeConfig>,
    /// Contents of `text_encoder/config.json`.
    pub text_encoder: TextEncoderConfig,
    /// Contents of `scheduler/config.json`.
    pub scheduler: SchedulerConfig,
}

/// Contents of `model.json`: the model's name, and how it makes a picture unless a request says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Name of the model.
    pub name: String,
    /// Width and height of a picture, in pixels.
    pub image_size: usize,
    /// Sampler that the model is made for.
    pub sampler: Sampler,
    /// Number of sampler steps.
    pub steps: usize,
    /// Guidance scale: weight of the prompt against the empty prompt. 1 means no guidance, and is the only value for
    /// [`Sampler::OneStep`].
    pub guidance: f32,
    /// Defaults of DDIM on a one-step model; `None` means [`DdimDefaults::default`]. A model whose own sampler is
    /// DDIM must not have this key: `steps` and `guidance` are its defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ddim: Option<DdimDefaults>,
    /// One sentence about the model.
    #[serde(default)]
    pub description: String,
}

/// Guidance scales that models and requests may ask for.
pub(crate) const GUIDANCE: std::ops::RangeInclusive<f32> = 0.0..=100.0;

/// Defaults of DDIM on a one-step model, which uses it for more steps, guidance or fresh noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdimDefaults {
    /// Number of steps, more than the one-step sampler takes.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f32,
}

impl Default for DdimDefaults {
    /// Returns the values for files without the key `ddim`: a guidance of about 3 as in the paper, and 20 steps, which
    /// look like the paper's 50.
    fn default() -> Self {
        Self { steps: 20, guidance: 3.0 }
    }
}

/// Sampler that leads from noise to a clean latent (docs/model.md, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// DDIM: tens of steps, with guidance.
    Ddim,
    /// UFOGen's sampler: one step, or up to four with fresh noise between them. It uses no guidance.
    OneStep,
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ddim => "DDIM",
            Self::OneStep => "one step",
        })
    }
}

/// Contents of `decoder/config.json`: the light decoder (docs/model.md, section 2.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Class name, always `LightDecoder`.
    #[serde(rename = "_class_name", default = "DecoderConfig::class_name")]
    pub class_name: String,
    /// Number of channels of the latent.
    pub latent_channels: usize,
    /// Number of colour channels, always 3.
    pub out_channels: usize,
    /// Widths of the four levels, from the picture to the latent.
    pub block_out_channels: Vec<usize>,
    /// Number of residual blocks of each level, from the latent to the picture.
    pub layers_per_up_block: Vec<usize>,
    /// Number of groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Epsilon of every group normalisation.
    pub norm_eps: f32,
    /// Factor that gives the encoder's latents unit standard deviation. The decoder divides by it.
    pub scaling_factor: f32,
}

impl DecoderConfig {
    const CLASS_NAME: &str = "LightDecoder";

    fn class_name() -> String {
        Self::CLASS_NAME.to_owned()
    }
}

/// Contents of `text_encoder/config.json`, in the keys of transformers' `CLIPTextConfig` (docs/model.md, section 3).
///
/// Keys that only training or transformers itself needs (`architectures`, `bos_token_id`, `torch_dtype` and so on)
/// are accepted and ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextEncoderConfig {
    /// Number of rows of the token embedding.
    pub vocab_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Number of tokens of an encoded text, begin and end marks included.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers: `quick_gelu` or `gelu`.
    pub hidden_act: Activation,
    /// Epsilon of every layer normalisation.
    pub layer_norm_eps: f32,
}

/// Contents of `scheduler/config.json`: the noise schedule (docs/model.md, section 4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Number of training steps; timesteps run from 0 to `num_train_timesteps - 1`.
    pub num_train_timesteps: usize,
    /// First beta, between 0 and 1.
    pub beta_start: f64,
    /// Last beta, at least `beta_start` and below 1.
    pub beta_end: f64,
    /// Spacing of the betas, always `scaled_linear`: their square roots are evenly spaced.
    pub beta_schedule: String,
    /// Quantity that the UNet predicts. It must agree with the UNet's own file.
    pub prediction_type: Prediction,
}

/// File names within a model's directory.
mod file {
    pub(super) const MODEL: &str = "model.json";
    pub(super) const UNET: &str = "unet/config.json";
    pub(super) const UNET_BASE: &str = "unet_base/config.json";
    pub(super) const DECODER: &str = "decoder/config.json";
    pub(super) const VAE: &str = "vae/config.json";
    pub(super) const TEXT_ENCODER: &str = "text_encoder/config.json";
    pub(super) const SCHEDULER: &str = "scheduler/config.json";
}

/// Checkpoint that comes with the sources.
static MINI: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "model": built_in(include_str!("../checkpoints/mini/model.json")),
        "unet": built_in(include_str!("../checkpoints/mini/unet/config.json")),
        "unet_base": built_in(include_str!("../checkpoints/mini/unet_base/config.json")),
        "decoder": built_in(include_str!("../checkpoints/mini/decoder/config.json")),
        "vae": built_in(include_str!("../checkpoints/mini/vae/config.json")),
        "text_encoder": built_in(include_str!("../checkpoints/mini/text_encoder/config.json")),
        "scheduler": built_in(include_str!("../checkpoints/mini/scheduler/config.json")),
    })
});

/// Full-size model of the paper.
static MOBILEDIFFUSION: LazyLock<Value> = LazyLock::new(|| built_in(include_str!("../presets/mobilediffusion.json")));

/// Changes to the full-size UNet that make the alternatives (docs/model.md, section 1.8).
static ALTERNATIVES: LazyLock<Value> = LazyLock::new(|| built_in(include_str!("../presets/alternatives.json")));

/// Stable Diffusion 1.5.
static SD15: LazyLock<Value> = LazyLock::new(|| built_in(include_str!("../presets/sd15.json")));

fn built_in(text: &str) -> Value {
    serde_json::from_str(text).expect("a built-in preset is JSON")
}

impl ModelConfig {
    /// Names of the built-in presets.
    pub const PRESETS: &[&str] = &["mobilediffusion", "alt-1", "alt-2", "alt-4", "alt-7", "sd15", "mini"];

    /// Reads and validates the files of a model's directory.
    ///
    /// One of the folders `decoder` and `vae` may be missing, and `unet_base`. A folder that is there needs its file.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be read, [`ModelError::Json`] if a file does not parse, and
    /// [`ModelError::Config`] in the cases of [`Self::validate`].
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        /// Reads a file unless there is nothing in place of its folder, not even a link that leads nowhere.
        fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
            let folder = path.parent().unwrap_or(path).symlink_metadata();
            let is_absent = folder.is_err_and(|error| error.kind() == ErrorKind::NotFound);
            (!is_absent).then(|| read(path)).transpose()
        }
        let config = Self {
            defaults: read(&dir.join(file::MODEL))?,
            unet: read(&dir.join(file::UNET))?,
            unet_base: optional(&dir.join(file::UNET_BASE))?,
            decoder: optional(&dir.join(file::DECODER))?,
            vae: optional(&dir.join(file::VAE))?,
            text_encoder: read(&dir.join(file::TEXT_ENCODER))?,
            scheduler: read(&dir.join(file::SCHEDULER))?,
        };
        config.validate_in(dir)?;
        Ok(config)
    }

    /// Returns a built-in configuration:
    ///
    /// * `mobilediffusion`: the paper's full-size model as deployed, 512x512 pixels in one step;
    /// * `alt-1`, `alt-2`, `alt-4`, `alt-7`: other readings of the paper (docs/model.md, section 1.8);
    /// * `sd15`: Stable Diffusion 1.5, the paper's baseline;
    /// * `mini`: the checkpoint in `model/checkpoints/mini`.
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
            "mini" => whole(MINI.clone()),
            _ if ALTERNATIVES.get(name).is_some() => {
                let mut value = MOBILEDIFFUSION.clone();
                value["model"]["name"] = name.into();
                for (key, switch) in ALTERNATIVES[name].as_object().into_iter().flatten() {
                    value["unet"][key] = switch.clone();
                }
                whole(value)
            }
            _ => Err(ModelError::Config {
                path: "presets".into(),
                key: "name".into(),
                expected: Self::PRESETS.join(" or "),
                found: name.into(),
            }),
        }
    }

    /// Returns the UNet that a sampler evaluates.
    ///
    /// With DDIM, a one-step model uses its base UNet, whose weights lie in a folder of their own, `unet_base`. Its
    /// configuration is [`unet_base`](Self::unet_base) if it has one, else that of the one-step UNet.
    pub fn unet_of(&self, sampler: Sampler) -> &UnetConfig {
        match (self.defaults.sampler, sampler, &self.unet_base) {
            (Sampler::OneStep, Sampler::Ddim, Some(base)) => base,
            _ => &self.unet,
        }
    }

    /// Returns the number of pixels that the sides of a picture must be a multiple of, because the UNets halve the
    /// latent several times.
    pub fn size_multiple(&self) -> usize {
        let halvings = |unet: &UnetConfig| PIXELS_PER_LATENT * unet.latent_multiple();
        std::iter::once(&self.unet).chain(&self.unet_base).map(halvings).fold(SIZE_MULTIPLE, usize::max)
    }
}

#[cfg(test)]
mod tests;
