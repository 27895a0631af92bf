//! Weights and a graph that tests of plans share.

use mobilediffusion_graph::{Graph, WeightLoader};
use mobilediffusion_kernels::check::Random;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::networks::{Shape, denoise_graph};
use std::error::Error;

/// Numbers that depend on a name alone.
pub fn values(name: &str, len: usize) -> Vec<f32> {
    let seed = name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut random = Random::new(seed);
    (0..len).map(|_| random.normal()).collect()
}

/// Weights made up from their names, one of them wrong on request.
#[derive(Debug, Default)]
pub struct MadeUp {
    /// Name of the wrong one.
    pub broken: Option<&'static str>,
}

impl WeightLoader for MadeUp {
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        let terms = shape.iter().skip(1).product::<usize>().max(1);
        let mut made: Vec<f32> = values(name, elements(shape)).iter().map(|v| v / (terms as f32).sqrt()).collect();
        if self.broken == Some(name) {
            made[0] += 1.0;
        }
        Ok(made)
    }
}

/// A step of the sampler of the mini preset.
///
/// # Panics
/// If the preset does not build.
pub fn mini_denoise() -> Graph {
    let config = ModelConfig::preset("mini").expect("a preset is there");
    let shape = Shape::of(&config, 32, 32, Sampler::OneStep).expect("the size fits");
    denoise_graph(&config, &shape).expect("a preset builds")
}
