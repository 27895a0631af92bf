//! What the network's answer stands for.

use serde::{Deserialize, Serialize};

/// What the network predicts, by diffusers' names. At every step `z = a x0 + s noise` with `a² + s² = 1`. Spelt the
/// same in `shaders/common/prediction.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    #[default]
    Epsilon,
    /// `v = a noise - s x0`
    VPrediction,
    /// The clean latent `x0`.
    Sample,
}

impl Prediction {
    /// Every kind, for cases.
    pub const ALL: [Self; 3] = [Self::Epsilon, Self::VPrediction, Self::Sample];

    /// The number by which the shader knows it.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The clean latent in the CPU forms, from the prediction `p` and the latent `z`.
    #[inline]
    pub(crate) fn x0(self, p: f32, z: f32, a: f32, s: f32) -> f32 {
        match self {
            Self::Epsilon => (z - s * p) / a,
            Self::VPrediction => a * z - s * p,
            Self::Sample => p,
        }
    }

    /// The noise in the CPU forms.
    #[inline]
    pub(crate) fn noise(self, p: f32, z: f32, a: f32, s: f32) -> f32 {
        match self {
            Self::Epsilon => p,
            Self::VPrediction => a * p + s * z,
            Self::Sample => (z - a * p) / s,
        }
    }
}
