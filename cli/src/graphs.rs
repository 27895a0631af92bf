//! Networks of a model as recordings, with weights and inputs. Shared by `plan`, `info`, `bench --plan` and
//! `check --plan`.

use crate::Failure;
use crate::args::of_size;
use crate::terminal::note;
use clap::ValueEnum;
use mobilediffusion_graph::{Device, Origin, Recording, Weights};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{DType, Storage};
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::networks::{Decoder, Network, Shape};
use mobilediffusion_model::noise::Noise;
use mobilediffusion_model::{ModelConfig, Request, Source};

/// Makes the weights of a network for a device, and says so if the network's files decide how they are stored.
pub(crate) fn weights(network: Network, source: &Source, device: &Device) -> Result<Weights, Failure> {
    let weights = Weights::new(device.clone(), source.open(network)?);
    note_kept(weights.device().storage(), device.storage());
    Ok(weights)
}

/// Says so if the files of a network decided how it is stored, on a device of the storage `asked`.
pub(crate) fn note_kept(stored: Storage, asked: Storage) {
    if stored != asked {
        note("weights: f16, as in the files");
    }
}

/// Name of a network on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkName {
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

impl NetworkName {
    /// Returns the network that draws by a sampler.
    pub(crate) fn network(self, sampler: Sampler) -> Network {
        match self {
            Self::Text => Network::Text,
            Self::Unet => Network::Unet(sampler),
            Self::Decoder => Network::Decoder(Decoder::Light),
            Self::VaeDecoder => Network::Decoder(Decoder::Full),
            Self::VaeEncoder => Network::Encoder,
        }
    }
}

/// Returns the shape in which a request of a size and guidance draws one picture.
pub(crate) fn shape(config: &ModelConfig, size: Option<usize>, guidance: Option<f32>) -> Result<Shape, Failure> {
    let request = Request { width: size, height: size, guidance, ..Request::new("") };
    Ok(request.shape(config).map_err(of_size)?)
}

/// Records the steps of a network at a shape.
pub(crate) fn record(network: Network, config: &ModelConfig, shape: &Shape) -> Result<Recording, Failure> {
    Ok(Recording::new(network.graph(config, shape)?))
}

/// Records a network at the requested size and guidance. Returns it with a title: `unet of mini, 64x64 pixels`.
pub(crate) fn recorded(
    name: NetworkName,
    config: &ModelConfig,
    size: Option<usize>,
    guidance: Option<f32>,
) -> Result<(Network, Recording, String), Failure> {
    let shape = shape(config, size, guidance)?;
    let network = name.network(shape.sampler);
    let (width, height) = shape.latent.pixels();
    let title = format!("{} of {}, {width}x{height} pixels", network.title(), config.defaults.name);
    Ok((network, record(network, config, &shape)?, title))
}

/// Makes values for every input of a recording: token ids 1, 2, 3, ...; timestep 500; coefficients 0.5; noise
/// elsewhere.
pub(crate) fn inputs(recording: &Recording) -> Vec<(String, Vec<f32>)> {
    let inputs = recording.tensors().iter().filter(|tensor| matches!(tensor.origin, Origin::Input(_)));
    let values = |tensor: &mobilediffusion_graph::TensorInfo| {
        let len = elements(&tensor.shape);
        match (tensor.name.as_str(), tensor.dtype) {
            (_, DType::U32) => (1..).map(f32::from_bits).take(len).collect(),
            ("timestep", _) => vec![500.0; len],
            // Zeros would be divided by, or hide a part of the step. Equal coefficients keep values near one.
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
