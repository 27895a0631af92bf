//! What is loaded: a configuration, and where its weights come from.

use crate::config::{ModelConfig, Sampler};
use crate::error::ModelError;
use crate::networks::{Decoder, LatentSize, Shape, decode_graph, denoise_graph, text_graph, vae_weights};
use crate::weights::{Checkpoint, Synthetic, WeightSource};
use std::path::{Path, PathBuf};

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsFrom {
    /// A folder with `unet`, `text_encoder`, and `decoder` or `vae` in it. Its files are mapped: they must not change as long
    /// as there is a model of them.
    Directory(PathBuf),
    /// Made up from a seed: for measuring, not for looking at.
    Synthetic(u64),
}

/// A model: its configuration and its weights.
#[derive(Clone, Debug)]
pub struct Source {
    /// The networks.
    pub config: ModelConfig,
    /// Their weights.
    pub weights: WeightsFrom,
}

impl Source {
    /// The checkpoint that comes with the project: beside the executable in `checkpoints/mini`, or in the sources it
    /// was built from.
    ///
    /// # Errors
    /// If it is in neither place, or does not read.
    pub fn bundled() -> Result<Self, ModelError> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("checkpoints/mini")));
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/mini");
        Self::directory(&beside.filter(|path| path.is_dir()).unwrap_or(sources))
    }

    /// A checkpoint in a folder.
    ///
    /// # Errors
    /// If its configuration is missing or does not make sense.
    pub fn directory(path: &Path) -> Result<Self, ModelError> {
        Ok(Self { config: ModelConfig::load(path)?, weights: WeightsFrom::Directory(path.to_owned()) })
    }

    /// A preset with made-up weights.
    ///
    /// # Errors
    /// If there is no such preset.
    pub fn synthetic(preset: &str, seed: u64) -> Result<Self, ModelError> {
        Ok(Self { config: ModelConfig::preset(preset)?, weights: WeightsFrom::Synthetic(seed) })
    }

    /// The folder of a network. A checkpoint whose own sampler is the one-step one may bring the UNet it was made from
    /// along, in `unet_base`: that one is for DDIM.
    pub(super) fn folder(&self, part: Part) -> &'static str {
        match part {
            Part::Text => "text_encoder",
            Part::Unet(Sampler::Ddim) if self.config.defaults.sampler == Sampler::OneStep => "unet_base",
            Part::Unet(_) => "unet",
            Part::Decoder => Decoder::of(&self.config).folder(),
            Part::Encoder => Decoder::Full.folder(),
        }
    }

    /// The networks that every picture takes.
    pub(super) fn needed(&self) -> [Part; 3] {
        [Part::Text, Part::Unet(self.config.defaults.sampler), Part::Decoder]
    }

    /// The weights of a network, after checking that they are what its graph needs: names and shapes do not depend on the
    /// size of the picture.
    pub(super) fn part(&self, part: Part) -> Result<Box<dyn WeightSource>, ModelError> {
        let weights = self.weights_of(part)?;
        let folder = self.folder(part);
        let path = match &self.weights {
            WeightsFrom::Synthetic(seed) => return Ok(Box::new(Synthetic { seed: *seed })),
            WeightsFrom::Directory(path) => path,
        };
        if folder == "unet_base" && !path.join(folder).is_dir() {
            return Err(ModelError::NoPart { part: folder });
        }
        let checkpoint = Checkpoint::open(&path.join(folder))?;
        // CLIP checkpoints come with and without the prefix.
        let checkpoint = match part {
            Part::Text => checkpoint.with_optional_prefix("text_model."),
            _ => checkpoint,
        };
        checkpoint.verify(&weights)?;
        Ok(Box::new(checkpoint))
    }

    /// Names and shapes in the folder of a network.
    fn weights_of(&self, part: Part) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
        let config = &self.config;
        let size = config.defaults.image_size;
        Ok(match part {
            Part::Text => text_graph(config, 1)?.weights(),
            Part::Unet(sampler) => denoise_graph(config, &Shape::of(config, size, size, sampler)?)?.weights(),
            // The VAE's file holds both halves, whichever is run.
            Part::Encoder if config.vae.is_none() => return Err(ModelError::NoEncoder),
            Part::Encoder => vae_weights(config)?,
            Part::Decoder if Decoder::of(config) == Decoder::Full => vae_weights(config)?,
            Part::Decoder => decode_graph(config, LatentSize::of(config, size, size)?, Decoder::Light)?.weights(),
        })
    }
}

/// One of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// Token ids to the context.
    Text,
    /// The UNet for a sampler.
    Unet(Sampler),
    /// Latent to pixels.
    Decoder,
    /// Pixels to latent.
    Encoder,
}

impl Part {
    /// What it is called.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Text => "text encoder",
            Self::Unet(_) => "unet",
            Self::Decoder => "decoder",
            Self::Encoder => "vae encoder",
        }
    }
}
