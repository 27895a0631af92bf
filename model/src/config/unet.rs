//! `unet/config.json`: MobileDiffusion's UNet with the switches of its alternatives, or Stable Diffusion's UNet.

mod mobile_diffusion;
mod stable_diffusion;

pub use mobile_diffusion::{MiddleSelfAttention, MobileDiffusion, SelfAttention, SepKind, SepSampler, SepWidth};
pub use stable_diffusion::StableDiffusion;

use super::validate::NetworkConfig;
use crate::error::ModelError;
use crate::json::Plain;
use mobilediffusion_kernels::{Activation, Prediction};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::path::Path;

/// Configuration of a UNet; the key `_class_name` tells which kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum UnetConfig {
    /// MobileDiffusion's UNet with three levels and a deep middle module: `MobileDiffusionUNet`, or no `_class_name`.
    MobileDiffusion(MobileDiffusion),
    /// Stable Diffusion's UNet with as many levels as widths: diffusers' `UNet2DConditionModel`.
    StableDiffusion(StableDiffusion),
}

impl<'de> Deserialize<'de> for UnetConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fn kind<T: DeserializeOwned, E: Error>(value: Value) -> Result<T, E> {
            serde_path_to_error::deserialize(Plain(value)).map_err(|error| match error.path().to_string().as_str() {
                "." => E::custom(error.inner()),
                key => E::custom(format!("{key}: {}", error.inner())),
            })
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
    /// Returns the number of channels of the latent.
    pub fn in_channels(&self) -> usize {
        match self {
            Self::MobileDiffusion(config) => config.in_channels,
            Self::StableDiffusion(config) => config.in_channels,
        }
    }

    /// Returns the number of channels of the prediction.
    pub fn out_channels(&self) -> usize {
        match self {
            Self::MobileDiffusion(config) => config.out_channels,
            Self::StableDiffusion(config) => config.out_channels,
        }
    }

    /// Returns the width of the text's tokens.
    pub fn cross_attention_dim(&self) -> usize {
        match self {
            Self::MobileDiffusion(config) => config.cross_attention_dim,
            Self::StableDiffusion(config) => config.cross_attention_dim,
        }
    }

    /// Returns the quantity that the network predicts, or `None` where only the scheduler's file says it.
    pub fn prediction_type(&self) -> Option<Prediction> {
        match self {
            Self::MobileDiffusion(config) => Some(config.prediction_type),
            Self::StableDiffusion(_) => None,
        }
    }

    /// Returns the number that the height and width of a latent must be a multiple of: 2 to the power of the
    /// halvings.
    pub fn latent_multiple(&self) -> usize {
        match self {
            Self::MobileDiffusion(_) => 4,
            Self::StableDiffusion(config) => 1 << (config.block_out_channels.len() - 1),
        }
    }
}

impl NetworkConfig for UnetConfig {
    fn validate(&self, path: &Path) -> Result<(), ModelError> {
        match self {
            Self::MobileDiffusion(config) => config.validate(path),
            Self::StableDiffusion(config) => config.validate(path),
        }
    }
}

/// Kind of the gated feed-forward layers: the activation that their gates pass through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedForward {
    /// Gated by silu.
    SwiGlu,
    /// Gated by gelu.
    GeGlu,
}

impl FeedForward {
    /// Returns the gate's activation.
    pub(crate) fn gate(self) -> Activation {
        match self {
            Self::SwiGlu => Activation::Silu,
            Self::GeGlu => Activation::Gelu,
        }
    }
}
