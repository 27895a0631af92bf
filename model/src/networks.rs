//! The graphs of a whole model: what is built, in one place, for the pipeline, for `info` and for tests.

use crate::config::{ModelConfig, PIXELS_PER_LATENT, SIZE_MULTIPLE, Sampler};
use crate::decoder::decoder;
use crate::error::ModelError;
use crate::text_encoder::text_encoder;
use crate::unet::unet;
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
}

impl Shape {
    /// The shape for a picture of `width` x `height` pixels.
    ///
    /// # Errors
    /// If a side is zero or no multiple of 32 pixels: the UNet halves the latent twice.
    pub fn of(width: usize, height: usize, sampler: Sampler, steps: usize, guided: bool) -> Result<Self, ModelError> {
        for (key, found) in [("width", width), ("height", height)] {
            if found == 0 || !found.is_multiple_of(SIZE_MULTIPLE) {
                return Err(ModelError::Size { key, found });
            }
        }
        let [latent_height, latent_width] = [height, width].map(|pixels| pixels / PIXELS_PER_LATENT);
        Ok(Self { latent_height, latent_width, steps, sampler, guided })
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
/// the one-step sampler takes more than one step, `noise`; output: `next`.
///
/// # Errors
/// If the configuration does not fit.
pub fn denoise_graph(config: &ModelConfig, shape: &Shape) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let (n, tokens) = (shape.batch(), config.text_encoder.max_position_embeddings);
    let map = [n, shape.latent_height, shape.latent_width, config.unet.in_channels];
    let latent = g.input("latent", map, DType::F32);
    let timestep = g.input("timestep", [n], DType::F32);
    let context = g.input("context", [n, tokens, config.unet.cross_attention_dim], DType::Elem);
    let prediction = unet(&mut g, &config.unet, &latent, &timestep, &context)?;
    let kind = config.unet.prediction_type;
    let next = match shape.sampler {
        Sampler::Ddim => {
            let coefficients = g.input("coefficients", [8], DType::F32);
            g.ddim_step(&latent, &prediction, &coefficients, (shape.guided, kind))?
        }
        Sampler::OneStep => {
            let coefficients = g.input("coefficients", [4], DType::F32);
            let noise = (shape.steps > 1).then(|| g.input("noise", map, DType::F32));
            g.one_step_x0(&latent, &prediction, &coefficients, (noise.as_ref(), kind))?
        }
    };
    g.output("next", &next);
    Ok(g)
}

/// The decoder and the way to pixels. Inputs: `latent` of one image; output: `pixels [1, h, w]`, rgba8.
///
/// # Errors
/// If the configuration does not fit.
pub fn decode_graph(config: &ModelConfig, shape: &Shape) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let map = [1, shape.latent_height, shape.latent_width, config.decoder.latent_channels];
    let latent = g.input("latent", map, DType::F32);
    let picture = decoder(&mut g, &config.decoder, &latent)?;
    let pixels = g.rgba8(&picture)?;
    g.output("pixels", &pixels);
    Ok(g)
}
