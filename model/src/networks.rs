//! The graphs of a whole model: what is built, in one place, for the pipeline, for `info` and for tests.

use crate::config::{MOST_PIXELS, ModelConfig, PIXELS_PER_LATENT, SIZE_MULTIPLE, Sampler};
use crate::decoder::decoder;
use crate::error::ModelError;
use crate::text_encoder::text_encoder;
use crate::unet::unet;
use crate::vae;
use mobilediffusion_graph::{Graph, GraphError};
use mobilediffusion_kernels::DType;

/// What a picture's size and the sampler make of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Rows of the latent.
    pub latent_height: usize,
    /// Columns of the latent.
    pub latent_width: usize,
    /// Network evaluations.
    pub steps: usize,
    /// Which sampler.
    pub sampler: Sampler,
    /// Whether every evaluation is a pair, without and with the text.
    pub guided: bool,
    /// DDIM's fresh noise: 0 for none, 1 for as much as the forward process has.
    pub eta: f64,
}

impl Shape {
    /// The shape for a picture of `width` x `height` pixels.
    ///
    /// # Errors
    /// If a side is beyond [`MOST_PIXELS`], zero or no multiple of 32 pixels: the UNet halves the latent twice.
    pub fn of(width: usize, height: usize, sampler: Sampler, steps: usize, guided: bool) -> Result<Self, ModelError> {
        for (key, found) in [("width", width), ("height", height)] {
            Self::check_side(key, found)?;
            if found == 0 || !found.is_multiple_of(SIZE_MULTIPLE) {
                return Err(ModelError::Size { key, found });
            }
        }
        let [latent_height, latent_width] = [height, width].map(|pixels| pixels / PIXELS_PER_LATENT);
        Ok(Self { latent_height, latent_width, steps, sampler, guided, eta: 0.0 })
    }

    /// Refuses a side that no network is made for, whatever its multiple.
    pub(crate) fn check_side(key: &'static str, side: usize) -> Result<(), ModelError> {
        if side <= MOST_PIXELS {
            return Ok(());
        }
        let (expected, found) = (format!("at most {MOST_PIXELS} pixels"), side.to_string());
        Err(ModelError::Request { key, expected, found })
    }

    /// Whether a step of the sampler takes fresh noise.
    pub fn takes_noise(&self) -> bool {
        match self.sampler {
            Sampler::Ddim => self.eta > 0.0,
            Sampler::OneStep => self.steps > 1,
        }
    }

    /// Images in a batch of the UNet.
    pub fn batch(&self) -> usize {
        if self.guided { 2 } else { 1 }
    }
}

/// Token ids to `context`. Inputs: `ids [batch, tokens]`.
///
/// # Errors
/// If the configuration does not fit.
pub fn text_graph(config: &ModelConfig, batch: usize) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let ids = g.input("ids", [batch, config.text_encoder.max_position_embeddings], DType::U32);
    let context = text_encoder(&mut g, &config.text_encoder, &ids)?;
    g.output("context", &context);
    Ok(g)
}

/// One step of the sampler: the UNet, then the step. Inputs: `latent`, `timestep`, `context`, `coefficients` and, if
/// the shape [takes noise](Shape::takes_noise), `noise` of one image; output: `next`.
///
/// # Errors
/// If the configuration does not fit.
pub fn denoise_graph(config: &ModelConfig, shape: &Shape) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let (n, tokens) = (shape.batch(), config.text_encoder.max_position_embeddings);
    let map = [n, shape.latent_height, shape.latent_width, config.unet.in_channels()];
    let latent = g.input_of_every_run("latent", map, DType::F32);
    let timestep = g.input("timestep", [n], DType::F32);
    let context = g.input("context", [n, tokens, config.unet.cross_attention_dim()], DType::Elem);
    let prediction = unet(&mut g, &config.unet, &latent, &timestep, &context)?;
    let kind = config.scheduler.prediction_type;
    let coefficients = match shape.sampler {
        Sampler::Ddim => g.input("coefficients", [8], DType::F32),
        Sampler::OneStep => g.input("coefficients", [4], DType::F32),
    };
    let [_, height, width, channels] = map;
    let noise = shape.takes_noise().then(|| g.input("noise", [1, height, width, channels], DType::F32));
    let next = match shape.sampler {
        Sampler::Ddim => g.ddim_step(&latent, &prediction, &coefficients, (shape.guided, noise.as_ref(), kind))?,
        Sampler::OneStep => g.one_step_x0(&latent, &prediction, &coefficients, (noise.as_ref(), kind))?,
    };
    g.output("next", &next);
    Ok(g)
}

/// Which network makes pictures of latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// The light one, folder `decoder`.
    Light,
    /// The full VAE's, folder `vae`.
    Full,
}

impl Decoder {
    /// The one a model decodes with unless asked otherwise: the light one if there is one.
    pub fn of(config: &ModelConfig) -> Self {
        if config.decoder.is_some() { Self::Light } else { Self::Full }
    }

    /// The folder of its weights.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Light => "decoder",
            Self::Full => "vae",
        }
    }
}

/// The part of a model that may be missing.
fn part<'a, T>(part: &'a Option<T>, name: &'static str) -> Result<&'a T, ModelError> {
    part.as_ref().ok_or(ModelError::NoPart { part: name })
}

/// A decoder and the way to pixels. Inputs: `latent` of one image; output: `pixels [1, h, w]`, rgba8.
///
/// # Errors
/// If the model has no such decoder, or the configuration does not fit.
pub fn decode_graph(config: &ModelConfig, shape: &Shape, which: Decoder) -> Result<Graph, ModelError> {
    let mut g = Graph::new();
    let map = [1, shape.latent_height, shape.latent_width, config.unet.in_channels()];
    let latent = g.input("latent", map, DType::F32);
    let picture = match which {
        Decoder::Light => decoder(&mut g, part(&config.decoder, "decoder")?, &latent)?,
        Decoder::Full => vae::decoder(&mut g, part(&config.vae, "vae")?, &latent)?,
    };
    let pixels = g.rgba8(&picture)?;
    g.output("pixels", &pixels);
    Ok(g)
}

/// Weights of the folder `vae`, encoder and decoder, with their shapes.
///
/// # Errors
/// If the model has no full VAE, or the configuration does not fit.
pub fn vae_weights(config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
    let shape = Shape::of(SIZE_MULTIPLE, SIZE_MULTIPLE, Sampler::OneStep, 1, false)?;
    let mut weights = encode_graph(config, &shape)?.weights();
    weights.extend(decode_graph(config, &shape, Decoder::Full)?.weights());
    Ok(weights)
}

/// The VAE's encoder. Inputs: `image [1, 8h, 8w, 3]` in [-1, 1]; output: `latent [1, h, w, c]`, the scaled mean.
///
/// # Errors
/// If the model has no full VAE, or the configuration does not fit.
pub fn encode_graph(config: &ModelConfig, shape: &Shape) -> Result<Graph, ModelError> {
    let config = part(&config.vae, "vae")?;
    let mut g = Graph::new();
    let [height, width] = [shape.latent_height, shape.latent_width].map(|side| side * PIXELS_PER_LATENT);
    let image = g.input("image", [1, height, width, config.in_channels], DType::F32);
    let moments = vae::encoder(&mut g, config, &image)?;
    let latent = vae::latent(&mut g, config, &moments)?;
    g.output("latent", &latent);
    Ok(g)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_graph::Recording;

    /// Shape of the output of this name.
    fn output(graph: Graph, name: &str) -> Vec<usize> {
        let recording = Recording::new(graph);
        let (_, tensor) = recording.outputs.iter().find(|(output, _)| output == name).expect("the graph has it");
        recording.tensors[*tensor].shape.clone()
    }

    #[test]
    fn pictures_need_not_be_square() {
        for preset in ["mobilediffusion", "alt-2", "alt-7", "mini"] {
            let config = ModelConfig::preset(preset).unwrap();
            let c = config.unet.in_channels();
            for (width, height) in [(64, 96), (96, 64), (32, 32), (640, 32)] {
                let shape = Shape::of(width, height, Sampler::Ddim, 20, true).unwrap();
                let (h, w) = (height / PIXELS_PER_LATENT, width / PIXELS_PER_LATENT);
                let next = output(denoise_graph(&config, &shape).unwrap(), "next");
                assert_eq!(next.iter().product::<usize>(), 2 * h * w * c, "{preset} {width}x{height}: {next:?}");
                let pixels = output(decode_graph(&config, &shape, Decoder::of(&config)).unwrap(), "pixels");
                assert_eq!(pixels, [1, height, width], "{preset}");
                if config.vae.is_some() {
                    let latent = output(encode_graph(&config, &shape).unwrap(), "latent");
                    assert_eq!(latent.iter().product::<usize>(), h * w * c, "{preset} {width}x{height}: {latent:?}");
                }
            }
        }
        for (width, height, key) in [(0, 64, "width"), (64, 48, "height"), (100, 64, "width")] {
            let error = Shape::of(width, height, Sampler::Ddim, 20, true).unwrap_err();
            assert!(matches!(error, ModelError::Size { key: found, .. } if found == key), "{width}x{height}: {error}");
        }
    }

    #[test]
    fn a_network_that_halves_more_often_says_where_a_size_does_not_fit() {
        let config = ModelConfig::preset("sd15").unwrap();
        let shape = |side| Shape::of(side, side, Sampler::Ddim, 50, true).unwrap();
        denoise_graph(&config, &shape(64)).unwrap();
        let error = denoise_graph(&config, &shape(96)).unwrap_err().to_string();
        assert!(error.contains("down_blocks.2.downsamplers.0.conv") && error.ends_with("a multiple of 2"), "{error}");
    }

    #[test]
    fn noise_is_an_input_where_the_sampler_takes_some() {
        let config = ModelConfig::preset("mini").unwrap();
        let shape = |sampler, steps| Shape::of(64, 64, sampler, steps, false).unwrap();
        let plain = shape(Sampler::Ddim, 20);
        for (shape, takes) in [
            (plain, false),
            (Shape { eta: 0.5, ..plain }, true),
            (shape(Sampler::OneStep, 1), false),
            (shape(Sampler::OneStep, 2), true),
        ] {
            let recording = Recording::new(denoise_graph(&config, &shape).unwrap());
            let found = recording.tensors.iter().any(|tensor| tensor.name == "noise");
            assert_eq!((found, shape.takes_noise()), (takes, takes), "{shape:?}");
        }
    }

    #[test]
    fn a_model_without_a_part_says_which() {
        let config = ModelConfig { vae: None, ..ModelConfig::preset("mobilediffusion").unwrap() };
        let shape = Shape::of(64, 64, Sampler::OneStep, 1, false).unwrap();
        for result in [encode_graph(&config, &shape), decode_graph(&config, &shape, Decoder::Full)] {
            let error = result.unwrap_err();
            assert!(matches!(error, ModelError::NoPart { part: "vae" }), "{error}");
        }
    }
}
