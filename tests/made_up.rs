//! Synthetic weights and a graph that tests of plans share.

use mobilediffusion_graph::{Graph, WeightLoader};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::random::Random;
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::networks::{Shape, denoise_graph};
use std::error::Error;
use std::ops::Range;

/// Returns normally distributed numbers that depend on a name alone.
pub fn values(name: &str, len: usize) -> Vec<f32> {
    let seed = name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut random = Random::new(seed);
    (0..len).map(|_| random.normal()).collect()
}

/// Loader of weights that depend on their names alone, one of them wrong on request.
#[derive(Debug, Default)]
pub struct MadeUp {
    /// Name of the weight that is wrong.
    pub broken: Option<&'static str>,
}

impl WeightLoader for MadeUp {
    fn load_part(
        &self,
        name: &str,
        shape: &[usize],
        part: Range<usize>,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        let terms = shape.iter().skip(1).product::<usize>().max(1);
        let mut made: Vec<f32> = values(name, elements(shape)).iter().map(|v| v / (terms as f32).sqrt()).collect();
        if self.broken == Some(name) {
            made[0] += 1.0;
        }
        Ok(made[part].to_vec())
    }
}

/// Builds one step of the one-step sampler of the preset `mini`, at 32x32 pixels.
///
/// # Panics
/// If the preset does not build.
pub fn mini_denoise() -> Graph {
    let config = ModelConfig::preset("mini").expect("a preset is there");
    let shape = Shape::of(&config, 32, 32, Sampler::OneStep).expect("the size fits");
    denoise_graph(&config, &shape).expect("a preset builds")
}
