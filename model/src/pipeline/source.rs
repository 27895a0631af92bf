//! Sources of models: a configuration, and the place its weights come from.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::networks::{Decoder, Network, UNET_BASE};
use crate::weights::{Checkpoint, Synthetic, WeightLoader};
use std::path::{Path, PathBuf};

/// Weights of a network from files whose headers were checked, or synthetic ones.
pub type Loader = Box<dyn WeightLoader + Send + Sync>;

/// Folder of the checkpoint that comes with the project, beside an executable and in the sources.
const MINI: &str = "checkpoints/mini";

/// Place that weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsFrom {
    /// Folder with the subfolders `unet`, `text_encoder`, and `decoder` or `vae`. Its files are mapped and must not
    /// change while a model uses them.
    Directory(PathBuf),
    /// Seed of synthetic weights, for measurements. Their pictures have no meaning.
    Synthetic(u64),
}

impl WeightsFrom {
    /// Returns a place that stays where it is when the process changes its working directory: files are also opened
    /// long after the model was loaded.
    pub(super) fn absolute(self) -> Result<Self, ModelError> {
        let Self::Directory(path) = self else { return Ok(self) };
        // An empty path is the working directory too.
        let absolute = std::path::absolute(Path::new(".").join(&path));
        Ok(Self::Directory(absolute.map_err(|error| ModelError::Io { path, error })?))
    }
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
    /// sources that the program was built from. An application that is to run on other machines brings the folder
    /// along, beside its executable or in a place of its own for [`directory`](Self::directory).
    ///
    /// # Errors
    /// [`ModelError`] if the checkpoint is in neither place, which names both, or its configuration is not valid.
    pub fn bundled() -> Result<Self, ModelError> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(MINI)));
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join(MINI);
        let places: Vec<PathBuf> = beside.into_iter().chain([sources]).collect();
        match places.iter().find(|place| place.join("model.json").is_file()) {
            Some(place) => Self::directory(place),
            None => Err(ModelError::NoCheckpoint { places }),
        }
    }

    /// Returns the checkpoint in a folder.
    ///
    /// # Errors
    /// [`ModelError`] if its configuration is missing or not valid.
    pub fn directory(path: &Path) -> Result<Self, ModelError> {
        let config = ModelConfig::load(path)?;
        Ok(Self { config, weights: WeightsFrom::Directory(path.to_owned()).absolute()? })
    }

    /// Returns a preset with synthetic weights.
    ///
    /// # Errors
    /// [`ModelError::Config`] if there is no such preset.
    pub fn synthetic(preset: &str, seed: u64) -> Result<Self, ModelError> {
        Ok(Self { config: ModelConfig::preset(preset)?, weights: WeightsFrom::Synthetic(seed) })
    }

    /// Returns the networks that every picture needs.
    pub(super) fn needed(&self) -> [Network; 3] {
        let config = &self.config;
        [Network::Text, Network::Unet(config.defaults.sampler), Network::Decoder(Decoder::of(config))]
    }

    /// Opens the files of a network and checks that their tensors are those that its graph needs.
    ///
    /// # Errors
    /// [`ModelError::NoPart`] if the model has no such network or comes without its folder, [`ModelError::Weights`] if the tensors are others, and
    /// further [`ModelError`]s if files cannot be read or the configuration is not valid.
    pub fn open(&self, network: Network) -> Result<Loader, ModelError> {
        let weights = network.weights(&self.config)?;
        let path = match &self.weights {
            WeightsFrom::Synthetic(seed) => return Ok(Box::new(Synthetic { seed: *seed })),
            WeightsFrom::Directory(path) => path,
        };
        self.check_base(network)?;
        let checkpoint = Checkpoint::open(&path.join(network.folder(&self.config)))?;
        checkpoint.verify(&weights)?;
        Ok(Box::new(checkpoint))
    }

    /// Checks that the base UNet, which a one-step model may come without, is there if the network is that one.
    pub(super) fn check_base(&self, network: Network) -> Result<(), ModelError> {
        let folder = network.folder(&self.config);
        match &self.weights {
            WeightsFrom::Directory(path) if folder == UNET_BASE && !path.join(folder).is_dir() => {
                Err(ModelError::NoPart { part: folder })
            }
            _ => Ok(()),
        }
    }
}
