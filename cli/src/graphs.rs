//! Networks of a model as recordings, with weights and inputs. Shared by `plan`, `info`, `bench --plan` and
//! `check --plan`.

use crate::Failure;
use crate::args::Networks;
use crate::terminal::note;
use clap::ValueEnum;
use mobilediffusion_graph::{Device, Origin, Recording, WeightLoader, Weights};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{DType, Storage};
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::networks::{Decoder, Shape, decode_graph, denoise_graph, encode_graph, text_graph};
use mobilediffusion_model::noise::Noise;
use mobilediffusion_model::weights::{Checkpoint, Synthetic};

/// Makes the weights of a network for a device, and says so if the network's files decide how they are stored.
pub(crate) fn weights(network: Network, networks: &Networks, device: &Device) -> Result<Weights, Failure> {
    let weights = Weights::new(device.clone(), network.weights(networks)?);
    note_kept(weights.device().storage(), device.storage());
    Ok(weights)
}

/// Says so if the files of a network decided how it is stored, on a device of the storage `asked`.
pub(crate) fn note_kept(stored: Storage, asked: Storage) {
    if stored != asked {
        note("weights: f16, as in the files");
    }
}

/// A network of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// The text encoder
    Text,
    /// The UNet and a step of the sampler
    Unet,
    /// The light decoder
    Decoder,
    /// The decoder of the full VAE
    VaeDecoder,
    /// The encoder of the full VAE
    VaeEncoder,
}

impl Network {
    /// Returns the networks that a model has.
    pub(crate) fn of(config: &ModelConfig) -> Vec<Self> {
        let light = config.decoder.is_some().then_some(Self::Decoder);
        let full = config.vae.is_some().then_some([Self::VaeDecoder, Self::VaeEncoder]);
        [Self::Text, Self::Unet].into_iter().chain(light).chain(full.into_iter().flatten()).collect()
    }

    /// Returns the network's name in listings.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Text => "text encoder",
            Self::Unet => "unet",
            Self::Decoder => "decoder",
            Self::VaeDecoder => "vae decoder",
            Self::VaeEncoder => "vae encoder",
        }
    }

    /// Returns the name of the subfolder that holds the network's weights.
    fn folder(self) -> &'static str {
        match self {
            Self::Text => "text_encoder",
            Self::Unet => "unet",
            Self::Decoder => Decoder::Light.folder(),
            Self::VaeDecoder | Self::VaeEncoder => Decoder::Full.folder(),
        }
    }

    /// Records the network's steps at a shape.
    pub(crate) fn record(self, config: &ModelConfig, shape: &Shape) -> Result<Recording, Failure> {
        Ok(Recording::new(match self {
            // A pipeline encodes one prompt after the other.
            Self::Text => text_graph(config, 1)?,
            Self::Unet => denoise_graph(config, shape)?,
            Self::Decoder => decode_graph(config, shape.latent, Decoder::Light, 1)?,
            Self::VaeDecoder => decode_graph(config, shape.latent, Decoder::Full, 1)?,
            Self::VaeEncoder => encode_graph(config, shape.latent)?,
        }))
    }

    /// Opens the network's weights: the model's, or synthetic ones for an architecture that has none.
    pub(crate) fn weights(self, networks: &Networks) -> Result<Box<dyn WeightLoader + Send + Sync>, Failure> {
        let Some(folder) = networks.folder()? else { return Ok(Box::new(Synthetic { seed: 0 })) };
        let checkpoint = Checkpoint::open(&folder.join(self.folder()))?;
        Ok(Box::new(checkpoint))
    }
}

/// Makes values for every input of a recording: token ids 1, 2, 3, ...; timestep 500; coefficients 0.5; noise
/// elsewhere.
pub(crate) fn inputs(recording: &Recording) -> Vec<(String, Vec<f32>)> {
    let inputs = recording.tensors.iter().filter(|tensor| matches!(tensor.origin, Origin::Input(_)));
    let values = |tensor: &mobilediffusion_graph::TensorInfo| {
        let len = elements(&tensor.shape);
        match (tensor.name.as_str(), tensor.dtype) {
            (_, DType::U32) => (1..).map(f32::from_bits).take(len).collect(),
            ("timestep", _) => vec![500.0; len],
            // No sampler sets a coefficient to zero, so neither does this; equal ones keep values near one in each of
            // them.
            ("coefficients", _) => vec![0.5; len],
            _ => Noise::new(1).latent(len),
        }
    };
    inputs.map(|tensor| (tensor.name.clone(), values(tensor))).collect()
}

/// Borrows named inputs in the form that sessions take.
pub(crate) fn borrowed(inputs: &[(String, Vec<f32>)]) -> Vec<(&str, &[f32])> {
    inputs.iter().map(|(name, values)| (name.as_str(), values.as_slice())).collect()
}
