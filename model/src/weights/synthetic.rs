//! Synthetic weights of the right shapes.

use crate::noise::Noise;
use mobilediffusion_graph::WeightLoader;
use mobilediffusion_kernels::random::Random;
use rayon::prelude::*;
use std::error::Error;
use std::ops::Range;

/// Number of values that are computed at a time: small enough to stay in the cache, large enough to be worth a
/// thread's while.
const CHUNK: usize = 1 << 16;

/// Source of seeded synthetic weights, the same on every machine, for benchmarks and tests of full-size networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synthetic {
    /// Seed of all tensors; each name has its own sequence.
    pub seed: u64,
}

impl WeightLoader for Synthetic {
    fn load_part(
        &self,
        name: &str,
        shape: &[usize],
        part: Range<usize>,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok(made_up(name, shape, self.seed, part))
    }
}

/// Returns synthetic weights that keep activations in range.
///
/// The gain is 1 per fan-in: values are uniform in `±sqrt(3 / fan_in)`, where `fan_in` is the product of all sizes
/// but the first. Norm scales are near 1 and biases are small. The values depend only on `seed`, `name` and `shape`.
pub fn synthetic(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    made_up(name, shape, seed, 0..shape.iter().product())
}

/// Returns the values `part` of a synthetic tensor.
fn made_up(name: &str, shape: &[usize], seed: u64, part: Range<usize>) -> Vec<f32> {
    let key = name.bytes().fold(mix(seed), |hash, byte| mix(hash ^ u64::from(byte)));
    let normal = |mean: f32, deviation: f32| -> Vec<f32> {
        let values = Noise::new(key).latent(part.end);
        values[part.clone()].iter().map(|z| mean + deviation * z).collect()
    };
    if name.ends_with(".bias") {
        return normal(0.0, 0.02);
    }
    if is_norm(name) {
        return normal(1.0, 0.1);
    }
    let fan_in: usize = shape.iter().skip(1).product();
    uniform(key, part, (3.0 / fan_in.max(1) as f32).sqrt())
}

/// Whether a tensor is the scale of a norm, such as `norm1.weight`, `conv_norm_out.weight` or
/// `final_layer_norm.weight`.
fn is_norm(name: &str) -> bool {
    name.rsplit('.').nth(1).is_some_and(|module| module.contains("norm"))
}

/// Returns values uniform in `±bound`. Each is a hash of its index, so that they do not depend on how threads share
/// the work.
fn uniform(key: u64, part: Range<usize>, bound: f32) -> Vec<f32> {
    let (k0, k1) = (key as u32, (key >> 32) as u32);
    // lowbias32 (Chris Wellons), with half of the key mixed in between so that no two tensors share a sequence.
    let hash = |index: u32| {
        let x = index.wrapping_add(k0);
        let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d) ^ k1;
        let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
        x ^ x >> 16
    };
    let scale = bound * (-31.0_f32).exp2();
    let mut values = vec![0.0; part.len()];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (i, value) in values.iter_mut().enumerate() {
            // Tensors have fewer than 2^32 elements; a longer one would repeat itself.
            *value = hash((part.start + chunk * CHUNK + i) as u32) as i32 as f32 * scale;
        }
    });
    values
}

/// Spreads every bit of `state` over the whole word, by one step of SplitMix64.
fn mix(state: u64) -> u64 {
    Random::new(state).bits()
}
