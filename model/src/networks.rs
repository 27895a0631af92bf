//! Networks of a model and their graphs, in one place for the pipeline, for [`info`](crate::info) and for tests.

use crate::config::{MOST_PIXELS, ModelConfig, PIXELS_PER_LATENT, Sampler};
use crate::decoder::decoder;
use crate::error::ModelError;
use crate::text_encoder::text_encoder;
use crate::unet::unet;
use crate::vae;
use mobilediffusion_graph::{Graph, GraphError, SamplerStep};
use mobilediffusion_kernels::DType;

/// Height and width of a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatentSize {
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
}

impl LatentSize {
    /// Returns the latent size of a picture of `width` x `height` pixels.
    ///
    /// # Errors
    /// [`ModelError::Request`] if a side is above [`MOST_PIXELS`], zero or not a multiple of
    /// [`ModelConfig::size_multiple`].
    pub fn of(config: &ModelConfig, width: usize, height: usize) -> Result<Self, ModelError> {
        let multiple = config.size_multiple();
        for (key, found) in [("width", width), ("height", height)] {
            Self::check_side(key, found)?;
            if found == 0 || !found.is_multiple_of(multiple) {
                return Err(ModelError::request(key, format!("a positive multiple of {multiple} pixels"), found));
            }
        }
        Ok(Self { height: height / PIXELS_PER_LATENT, width: width / PIXELS_PER_LATENT })
    }

    /// Checks a picture side against [`MOST_PIXELS`] only.
    pub(crate) fn check_side(key: &'static str, side: usize) -> Result<(), ModelError> {
        if side <= MOST_PIXELS {
            return Ok(());
        }
        Err(ModelError::request(key, format!("at most {MOST_PIXELS} pixels"), side))
    }

    /// Returns the width and the height of the picture, in pixels.
    pub fn pixels(self) -> (usize, usize) {
        (PIXELS_PER_LATENT * self.width, PIXELS_PER_LATENT * self.height)
    }
}

/// Everything that shapes the graph of one UNet evaluation and the sampler's step after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Size of the latent.
    pub latent: LatentSize,
    /// Sampler.
    pub sampler: Sampler,
    /// Whether every evaluation is a pair: without the prompt, then with it.
    pub guided: bool,
    /// Whether a step adds fresh noise: with several one-step evaluations, or with DDIM and a positive eta.
    pub takes_noise: bool,
    /// Number of pictures that are drawn at once.
    pub pictures: usize,
}

impl Shape {
    /// Returns the shape for one picture of `width` x `height` pixels, without guidance and fresh noise.
    ///
    /// # Errors
    /// Fails in the cases of [`LatentSize::of`].
    pub fn of(config: &ModelConfig, width: usize, height: usize, sampler: Sampler) -> Result<Self, ModelError> {
        let latent = LatentSize::of(config, width, height)?;
        Ok(Self { latent, sampler, guided: false, takes_noise: false, pictures: 1 })
    }

    /// Returns the number of images in a batch of the UNet: two for each picture with guidance.
    pub fn batch(&self) -> usize {
        self.pictures * if self.guided { 2 } else { 1 }
    }
}

/// Folder of the UNet that a one-step model was made from. A model may come without it.
pub(crate) const UNET_BASE: &str = "unet_base";

/// Folder of the full VAE, encoder and decoder.
pub(crate) const VAE: &str = "vae";

/// Network of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// Text encoder: token ids to context.
    Text,
    /// UNet of a sampler, and the sampler's step.
    Unet(Sampler),
    /// Decoder: latent to pixels.
    Decoder(Decoder),
    /// Encoder of the full VAE: pixels to latent.
    Encoder,
}

impl Network {
    /// Returns the networks that a model has, with the UNet of one sampler.
    pub fn of(config: &ModelConfig, sampler: Sampler) -> Vec<Self> {
        let light = config.decoder.is_some().then_some(Self::Decoder(Decoder::Light));
        let full = config.vae.is_some().then_some([Self::Encoder, Self::Decoder(Decoder::Full)]);
        [Self::Text, Self::Unet(sampler)].into_iter().chain(light).chain(full.into_iter().flatten()).collect()
    }

    /// Returns the network's name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Text => "text encoder",
            Self::Unet(_) => "unet",
            Self::Decoder(Decoder::Light) => "decoder",
            Self::Decoder(Decoder::Full) => "vae decoder",
            Self::Encoder => "vae encoder",
        }
    }

    /// Returns the folder of the network's weights. DDIM on a one-step model uses `unet_base`, the UNet that the model
    /// was made from.
    pub fn folder(self, config: &ModelConfig) -> &'static str {
        match self {
            Self::Text => "text_encoder",
            Self::Unet(Sampler::Ddim) if config.defaults.sampler == Sampler::OneStep => UNET_BASE,
            Self::Unet(_) => "unet",
            Self::Decoder(which) => which.folder(),
            Self::Encoder => Decoder::Full.folder(),
        }
    }

    /// Builds the network's graph, for one prompt and for the pictures of `shape`.
    ///
    /// # Errors
    /// [`ModelError::NoPart`] if the model has no such network, [`ModelError::Config`] if its configuration is not valid,
    /// and [`ModelError::Graph`] if that does not fit the shape.
    pub fn graph(self, config: &ModelConfig, shape: &Shape) -> Result<Graph, ModelError> {
        config.validate()?;
        match self {
            Self::Text => Ok(text_graph(config)?),
            Self::Unet(sampler) => Ok(denoise_graph(config, &Shape { sampler, ..*shape })?),
            Self::Decoder(which) => decode_graph(config, shape.latent, which, shape.pictures),
            Self::Encoder => encode_graph(config, shape.latent),
        }
    }

    /// Returns the names and shapes of the weights in the network's folder, which do not depend on the size of a picture.
    ///
    /// # Errors
    /// [`ModelError::NoPart`] if the model has no such network, or [`ModelError::Config`] if the configuration is not valid.
    pub fn weights(self, config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
        if self.folder(config) == VAE {
            // The folder holds encoder and decoder, whichever is used.
            config.validate()?;
            return Ok(vae::weights(part(&config.vae, VAE)?)?);
        }
        let side = config.size_multiple();
        let shape = Shape::of(config, side, side, config.defaults.sampler)?;
        Ok(self.graph(config, &shape)?.weights())
    }
}

/// Builds the text encoder's graph for one text. Input: `ids [1, tokens]`; output: `context [1, tokens, d]`.
///
/// # Errors
/// [`GraphError`] if the configuration is not valid.
pub fn text_graph(config: &ModelConfig) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let ids = g.input("ids", [1, config.text_encoder.max_position_embeddings], DType::U32);
    let context = text_encoder(&mut g, &config.text_encoder, &ids)?;
    g.output("context", &context);
    Ok(g)
}

/// Builds the graph of one sampler step: the [UNet of the sampler](ModelConfig::unet_of), then the step.
///
/// Inputs: `latent`, `timestep`, `context`, `coefficients` and, if the shape [takes noise](Shape::takes_noise), `noise` of
/// every picture; output: `next`. With guidance, the first half of a batch are the pictures without the prompt.
///
/// # Errors
/// [`GraphError`] if the configuration does not fit the shape.
pub fn denoise_graph(config: &ModelConfig, shape: &Shape) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let (n, tokens) = (shape.batch(), config.text_encoder.max_position_embeddings);
    let unet_config = config.unet_of(shape.sampler);
    let map = [n, shape.latent.height, shape.latent.width, unet_config.in_channels()];
    let latent = g.input_of_every_run("latent", map, DType::F32);
    let timestep = g.input("timestep", [n], DType::F32);
    let context = g.input("context", [n, tokens, unet_config.cross_attention_dim()], DType::Elem);
    let prediction = unet(&mut g, unet_config, &latent, &timestep, &context)?;
    let kind = config.scheduler.prediction_type;
    let coefficients = g.input("coefficients", [8], DType::F32);
    let [_, height, width, channels] = map;
    let noise = shape.takes_noise.then(|| g.input("noise", [shape.pictures, height, width, channels], DType::F32));
    let step = SamplerStep { prediction: kind, guided: shape.guided, noise: noise.as_ref() };
    let next = g.ddim_step(&latent, &prediction, &coefficients, step)?;
    g.output("next", &next);
    Ok(g)
}

/// Network that decodes latents to pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decoder {
    /// Light decoder, in the folder `decoder`.
    Light,
    /// Decoder of the full VAE, in the folder `vae`.
    Full,
}

impl Decoder {
    /// Returns the decoder that a model uses: the light one if it has one.
    pub fn of(config: &ModelConfig) -> Self {
        if config.decoder.is_some() { Self::Light } else { Self::Full }
    }

    /// Returns the folder of the decoder's weights.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Light => "decoder",
            Self::Full => VAE,
        }
    }
}

/// Returns a part of a model that may be missing.
fn part<'a, T>(part: &'a Option<T>, name: &'static str) -> Result<&'a T, ModelError> {
    part.as_ref().ok_or(ModelError::NoPart { part: name })
}

/// Builds a decoder's graph with the conversion to pixels. Input: `latent [pictures, h, w, c]`; output: `pixels
/// [pictures, 8h, 8w]`, rgba8.
///
/// # Errors
/// [`ModelError::NoPart`] if the model has no such decoder, [`ModelError::Graph`] if the configuration does not fit
/// the size.
pub fn decode_graph(
    config: &ModelConfig,
    size: LatentSize,
    which: Decoder,
    pictures: usize,
) -> Result<Graph, ModelError> {
    let mut g = Graph::new();
    let map = [pictures, size.height, size.width, config.unet.in_channels()];
    let latent = g.input("latent", map, DType::F32);
    let picture = match which {
        Decoder::Light => decoder(&mut g, part(&config.decoder, "decoder")?, &latent)?,
        Decoder::Full => vae::decoder(&mut g, part(&config.vae, VAE)?, &latent)?,
    };
    let pixels = g.rgba8(&picture)?;
    g.output("pixels", &pixels);
    Ok(g)
}

/// Builds the graph of the VAE's encoder. Input: `image [1, 8h, 8w, 3]` in [-1, 1]; output: `latent [1, h, w, c]`,
/// the scaled mean.
///
/// # Errors
/// [`ModelError::NoPart`] if the model has no full VAE, [`ModelError::Graph`] if the configuration does not fit the
/// size.
pub fn encode_graph(config: &ModelConfig, size: LatentSize) -> Result<Graph, ModelError> {
    let config = part(&config.vae, VAE)?;
    let mut g = Graph::new();
    let (width, height) = size.pixels();
    let image = g.input("image", [1, height, width, config.in_channels], DType::F32);
    let moments = vae::encoder(&mut g, config, &image)?;
    let latent = vae::latent(&mut g, config, &moments)?;
    g.output("latent", &latent);
    Ok(g)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UnetConfig;
    use mobilediffusion_graph::Recording;
    use mobilediffusion_kernels::Phi;

    /// Returns the shape of the output of this name.
    fn output(graph: Graph, name: &str) -> Vec<usize> {
        let recording = Recording::new(graph);
        let (_, tensor) = recording.outputs().iter().find(|(output, _)| output == name).expect("the graph has it");
        recording.tensors()[*tensor].shape.clone()
    }

    #[test]
    fn pictures_need_not_be_square() {
        for preset in ["mobilediffusion", "alt-2", "alt-7", "mini"] {
            let config = ModelConfig::preset(preset).unwrap();
            let c = config.unet.in_channels();
            for (width, height) in [(64, 96), (96, 64), (32, 32), (640, 32)] {
                let shape = Shape { guided: true, ..Shape::of(&config, width, height, Sampler::Ddim).unwrap() };
                let (h, w) = (height / PIXELS_PER_LATENT, width / PIXELS_PER_LATENT);
                let next = output(denoise_graph(&config, &shape).unwrap(), "next");
                assert_eq!(next.iter().product::<usize>(), 2 * h * w * c, "{preset} {width}x{height}: {next:?}");
                let pixels = output(decode_graph(&config, shape.latent, Decoder::of(&config), 1).unwrap(), "pixels");
                assert_eq!(pixels, [1, height, width], "{preset}");
                if config.vae.is_some() {
                    let latent = output(encode_graph(&config, shape.latent).unwrap(), "latent");
                    assert_eq!(latent.iter().product::<usize>(), h * w * c, "{preset} {width}x{height}: {latent:?}");
                }
            }
        }
        let config = ModelConfig::preset("mini").unwrap();
        for (width, height, key) in [(0, 64, "width"), (64, 48, "height"), (100, 64, "width")] {
            let error = LatentSize::of(&config, width, height).unwrap_err();
            assert!(
                matches!(error, ModelError::Request { key: found, .. } if found == key),
                "{width}x{height}: {error}"
            );
        }
    }

    #[test]
    fn a_network_that_halves_more_often_takes_other_sizes() {
        let config = ModelConfig::preset("sd15").unwrap();
        let shape = |side| Shape::of(&config, side, side, Sampler::Ddim);
        denoise_graph(&config, &shape(64).unwrap()).unwrap();
        let error = shape(96).unwrap_err().to_string();
        assert_eq!(error, "width: expected a positive multiple of 64 pixels, found 96");
        // A size that was not checked gives an error that names the block.
        let latent = LatentSize { height: 12, width: 12 };
        let error = denoise_graph(&config, &Shape { latent, ..shape(64).unwrap() }).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("down_blocks.2.downsamplers.0.conv") && error.ends_with("a multiple of 2"), "{error}");
    }

    #[test]
    fn ddim_walks_the_unet_that_a_one_step_model_was_made_of() {
        let mut config = ModelConfig::preset("mini").unwrap();
        let steps = |config: &ModelConfig, sampler| {
            let graph = denoise_graph(config, &Shape::of(config, 64, 64, sampler).unwrap()).unwrap();
            Recording::new(graph).nodes().iter().map(|node| node.kernel.params_json()).collect::<Vec<_>>()
        };
        let [ddim, one_step] = [Sampler::Ddim, Sampler::OneStep];
        let (before, one_before) = (steps(&config, ddim), steps(&config, one_step));
        let Some(UnetConfig::MobileDiffusion(base)) = &mut config.unet_base else { panic!("mini has a base") };
        base.attention_phi = Phi::Softmax;
        assert_ne!(steps(&config, ddim), before, "its own settings");
        assert_eq!(steps(&config, one_step), one_before, "one step walks another");
        config.defaults.sampler = Sampler::Ddim;
        assert_eq!(steps(&config, ddim), before, "a model that is made for DDIM has one UNet");
    }

    #[test]
    fn noise_is_an_input_where_the_sampler_takes_some() {
        let config = ModelConfig::preset("mini").unwrap();
        for sampler in [Sampler::Ddim, Sampler::OneStep] {
            for takes_noise in [false, true] {
                let shape = Shape { takes_noise, ..Shape::of(&config, 64, 64, sampler).unwrap() };
                let recording = Recording::new(denoise_graph(&config, &shape).unwrap());
                let found = recording.tensors().iter().any(|tensor| tensor.name == "noise");
                assert_eq!(found, takes_noise, "{shape:?}");
            }
        }
    }

    #[test]
    fn a_model_without_a_part_says_which() {
        let config = ModelConfig { vae: None, ..ModelConfig::preset("mobilediffusion").unwrap() };
        let size = LatentSize { height: 8, width: 8 };
        for result in [encode_graph(&config, size), decode_graph(&config, size, Decoder::Full, 1)] {
            let error = result.unwrap_err();
            assert!(matches!(error, ModelError::NoPart { part: "vae" }), "{error}");
        }
    }
}
