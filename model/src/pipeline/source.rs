//! Sources of models: a configuration, and the place its weights come from.

use crate::config::{ModelConfig, Sampler};
use crate::error::ModelError;
use crate::networks::{Decoder, LatentSize, Shape, decode_graph, denoise_graph, text_graph, vae_weights};
use crate::weights::{Checkpoint, Synthetic, WeightLoader};
use std::path::{Path, PathBuf};

/// Place that weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsFrom {
    /// Folder with the subfolders `unet`, `text_encoder`, and `decoder` or `vae`. Its files are mapped and must not
    /// change while a model uses them.
    Directory(PathBuf),
    /// Seed of synthetic weights, for measurements. Their pictures have no meaning.
    Synthetic(u64),
}

/// Configuration and weights of a model.
#[derive(Clone, Debug)]
pub struct Source {
    /// Configuration of the networks.
    pub config: ModelConfig,
    /// Place that their weights come from.
    pub weights: WeightsFrom,
}

impl Source {
    /// Returns the checkpoint that comes with the project: `checkpoints/mini` beside the executable, or else in the
    /// sources that the program was built from.
    ///
    /// # Errors
    /// [`ModelError`] if the checkpoint is in neither place, or its configuration is not valid.
    pub fn bundled() -> Result<Self, ModelError> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("checkpoints/mini")));
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/mini");
        Self::directory(&beside.filter(|path| path.is_dir()).unwrap_or(sources))
    }

    /// Returns the checkpoint in a folder.
    ///
    /// # Errors
    /// [`ModelError`] if its configuration is missing or not valid.
    pub fn directory(path: &Path) -> Result<Self, ModelError> {
        Ok(Self { config: ModelConfig::load(path)?, weights: WeightsFrom::Directory(path.to_owned()) })
    }

    /// Returns a preset with synthetic weights.
    ///
    /// # Errors
    /// [`ModelError::Config`] if there is no such preset.
    pub fn synthetic(preset: &str, seed: u64) -> Result<Self, ModelError> {
        Ok(Self { config: ModelConfig::preset(preset)?, weights: WeightsFrom::Synthetic(seed) })
    }

    /// Returns the folder of a network. DDIM on a one-step model uses `unet_base`, the UNet that the model was made
    /// from.
    pub(super) fn folder(&self, part: Part) -> &'static str {
        match part {
            Part::Text => "text_encoder",
            Part::Unet(Sampler::Ddim) if self.config.defaults.sampler == Sampler::OneStep => "unet_base",
            Part::Unet(_) => "unet",
            Part::Decoder => Decoder::of(&self.config).folder(),
            Part::Encoder => Decoder::Full.folder(),
        }
    }

    /// Returns the networks that every picture needs.
    pub(super) fn needed(&self) -> [Part; 3] {
        [Part::Text, Part::Unet(self.config.defaults.sampler), Part::Decoder]
    }

    /// Opens the weights of a network and checks that they are what its graph needs. Names and shapes do not depend
    /// on the size of the picture.
    pub(super) fn part(&self, part: Part) -> Result<Box<dyn WeightLoader + Send + Sync>, ModelError> {
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
        checkpoint.verify(&weights)?;
        Ok(Box::new(checkpoint))
    }

    /// Returns the names and shapes in the folder of a network.
    fn weights_of(&self, part: Part) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
        let config = &self.config;
        let size = config.defaults.image_size;
        Ok(match part {
            Part::Text => text_graph(config, 1)?.weights(),
            Part::Unet(sampler) => denoise_graph(config, &Shape::of(config, size, size, sampler)?)?.weights(),
            // The VAE's file holds encoder and decoder, whichever is used.
            Part::Encoder if config.vae.is_none() => return Err(ModelError::NoEncoder),
            Part::Encoder => vae_weights(config)?,
            Part::Decoder if Decoder::of(config) == Decoder::Full => vae_weights(config)?,
            Part::Decoder => decode_graph(config, LatentSize::of(config, size, size)?, Decoder::Light, 1)?.weights(),
        })
    }
}

/// Network of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// Text encoder: token ids to context.
    Text,
    /// UNet of a sampler.
    Unet(Sampler),
    /// Decoder: latent to pixels.
    Decoder,
    /// VAE encoder: pixels to latent.
    Encoder,
}

impl Part {
    /// Returns the name of the network for people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Text => "text encoder",
            Self::Unet(_) => "unet",
            Self::Decoder => "decoder",
            Self::Encoder => "vae encoder",
        }
    }
}
