//! Standard normal noise that is the same on every machine: Philox4x32-10 and Box-Muller.
//!
//! Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) maps a key and a counter to four
//! random words without any state. The transform to normal values runs in f64 with `libm`'s logarithm, sine and
//! cosine, whose bits do not depend on the platform.

use std::f64::consts::TAU;

/// Multipliers of a round.
const M: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Increments of the key after each round: the golden ratio and the square root of three, minus one.
const W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Number of rounds.
const ROUNDS: usize = 10;

/// Number of values that one counter gives.
const BLOCK: usize = 4;

/// Returns four random words for a key and a counter.
fn philox4x32([mut k0, mut k1]: [u32; 2], [mut c0, mut c1, mut c2, mut c3]: [u32; 4]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let (high0, low0) = wide_product(M[0], c0);
        let (high1, low1) = wide_product(M[1], c2);
        [c0, c1, c2, c3] = [high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0];
        (k0, k1) = (k0.wrapping_add(W[0]), k1.wrapping_add(W[1]));
    }
    [c0, c1, c2, c3]
}

/// Returns the high and the low word of a product.
fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// Returns two independent standard normal values from two random words (Box-Muller).
fn normal_pair(w0: u32, w1: u32) -> [f32; 2] {
    // The half keeps `u` away from 0, where the logarithm is infinite.
    let unit = |word: u32| (f64::from(word) + 0.5) * (-32.0_f64).exp2();
    let radius = (-2.0 * libm::log(unit(w0))).sqrt();
    let angle = TAU * unit(w1);
    [(radius * libm::cos(angle)) as f32, (radius * libm::sin(angle)) as f32]
}

/// Reproducible sequence of standard normal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    key: [u32; 2],
    stream: u32,
}

impl Noise {
    /// Returns stream 0 of a seed, from which the initial latent is drawn.
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream: 0 }
    }

    /// Returns stream `k` of the same seed: the fresh noise that a sampler adds after its step `k`, counted from 1.
    pub(crate) fn stream(self, k: u32) -> Self {
        Self { stream: k, ..self }
    }

    /// Returns the first `len` values, in the order of a latent `[h, w, c]`.
    pub fn latent(&self, len: usize) -> Vec<f32> {
        let mut latent = vec![0.0; len];
        for (block, values) in (0_u64..).zip(latent.chunks_mut(BLOCK)) {
            let [w0, w1, w2, w3] = philox4x32(self.key, [block as u32, (block >> 32) as u32, self.stream, 0]);
            let ([z0, z1], [z2, z3]) = (normal_pair(w0, w1), normal_pair(w2, w3));
            values.copy_from_slice(&[z0, z1, z2, z3][..values.len()]);
        }
        latent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn philox_gives_the_known_answers() {
        // From the known-answer file of Random123, the authors' own implementation.
        assert_eq!(philox4x32([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let (key, counter) = ([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
        assert_eq!(philox4x32(key, counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn moments_are_those_of_a_standard_normal() {
        let values = Noise::new(42).latent(1 << 20);
        let moment = |k: i32| values.iter().map(|&z| f64::from(z).powi(k)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 5e-3, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 1e-2, "variance {}", moment(2));
        assert!(moment(3).abs() < 2e-2, "third moment {}", moment(3));
        assert!((moment(4) - 3.0).abs() < 5e-2, "fourth moment {}", moment(4));
    }

    #[test]
    fn seeds_and_streams_differ() {
        let first = |noise: Noise| noise.latent(8);
        assert_ne!(first(Noise::new(1)), first(Noise::new(2)));
        assert_ne!(first(Noise::new(1)), first(Noise::new(1 << 32 | 1)));
        assert_ne!(first(Noise::new(1)), first(Noise::new(1).stream(1)));
    }

    #[test]
    fn the_extreme_words_stay_finite() {
        for words in [(0, 0), (0, u32::MAX), (u32::MAX, 0), (u32::MAX, u32::MAX)] {
            let [z0, z1] = normal_pair(words.0, words.1);
            assert!(z0.is_finite() && z1.is_finite(), "{words:?}");
        }
    }

    #[test]
    fn it_agrees_with_the_numpy_twin() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/data/golden/noise.json")).unwrap();
        let cases = ["normal", "streams"].map(|key| golden[key].as_array().unwrap());
        for case in cases.into_iter().flatten() {
            let stream = case["stream"].as_u64().unwrap_or(0) as u32;
            let values = Noise::new(case["seed"].as_u64().unwrap()).stream(stream).latent(1004);
            for (key, got) in [("first_8", &values[..8]), ("values_1000_to_1003", &values[1000..])] {
                let want: Vec<f32> = case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
                let close = |(g, w): (&f32, &f32)| (g - w).abs() <= f32::EPSILON * w.abs();
                assert!(got.len() == want.len() && got.iter().zip(&want).all(close), "{key}: {got:?} {want:?}");
            }
        }
    }
}
