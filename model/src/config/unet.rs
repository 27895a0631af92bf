//! `unet/config.json`: MobileDiffusion's UNet with the switches of its alternatives, or Stable Diffusion's.

mod mobile_diffusion;
mod stable_diffusion;

pub use mobile_diffusion::{MiddleSelfAttention, MobileDiffusion, SelfAttention, SepKind, SepSampler, SepWidth};
pub use stable_diffusion::StableDiffusion;

use crate::error::ModelError;
use mobilediffusion_kernels::{Activation, Prediction};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::path::Path;

/// A UNet, of the kind that `_class_name` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum UnetConfig {
    /// `MobileDiffusionUNet`, also where there is no `_class_name`: three levels, a deep middle.
    MobileDiffusion(MobileDiffusion),
    /// `UNet2DConditionModel`, diffusers': as many levels as widths.
    StableDiffusion(StableDiffusion),
}

impl<'de> Deserialize<'de> for UnetConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fn kind<T: DeserializeOwned, E: Error>(value: Value) -> Result<T, E> {
            serde_path_to_error::deserialize(value)
                .map_err(|error| E::custom(format!("{}: {}", error.path(), error.inner())))
        }
        let mut value = Value::deserialize(deserializer)?;
        match value.get("_class_name").and_then(Value::as_str) {
            Some(StableDiffusion::CLASS_NAME) => {
                stable_diffusion::drop_defaults(&mut value);
                kind(value).map(Self::StableDiffusion)
            }
            _ => kind(value).map(Self::MobileDiffusion),
        }
    }
}

impl UnetConfig {
    /// Channels of the latent.
    pub fn in_channels(&self) -> usize {
        match self {
            Self::MobileDiffusion(config) => config.in_channels,
            Self::StableDiffusion(config) => config.in_channels,
        }
    }

    /// Channels of the prediction.
    pub fn out_channels(&self) -> usize {
        match self {
            Self::MobileDiffusion(config) => config.out_channels,
            Self::StableDiffusion(config) => config.out_channels,
        }
    }

    /// Width of the text's tokens.
    pub fn cross_attention_dim(&self) -> usize {
        match self {
            Self::MobileDiffusion(config) => config.cross_attention_dim,
            Self::StableDiffusion(config) => config.cross_attention_dim,
        }
    }

    /// What the network predicts; none where only the scheduler's file says it.
    pub fn prediction_type(&self) -> Option<Prediction> {
        match self {
            Self::MobileDiffusion(config) => Some(config.prediction_type),
            Self::StableDiffusion(_) => None,
        }
    }

    /// Height and width of a latent are multiples of this: the UNet halves them once less often than it has levels.
    pub fn latent_multiple(&self) -> usize {
        match self {
            Self::MobileDiffusion(_) => 4,
            Self::StableDiffusion(config) => 1 << (config.block_out_channels.len() - 1),
        }
    }

    /// Refuses what [`ModelConfig::validate`](super::ModelConfig::validate) would refuse in this file alone; `path` is
    /// for errors only.
    ///
    /// # Errors
    /// [`ModelError::Config`]
    pub fn validate(&self, path: &Path) -> Result<(), ModelError> {
        match self {
            Self::MobileDiffusion(config) => config.validate(path),
            Self::StableDiffusion(config) => config.validate(path),
        }
    }
}

/// What the gates of the feed-forward layers go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedForward {
    /// silu
    SwiGlu,
    /// gelu
    GeGlu,
}

impl FeedForward {
    /// The gate's activation.
    pub fn gate(self) -> Activation {
        match self {
            Self::SwiGlu => Activation::Silu,
            Self::GeGlu => Activation::Gelu,
        }
    }
}
