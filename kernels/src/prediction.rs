//! Prediction types: the quantity that the UNet predicts.

use serde::{Deserialize, Serialize};

/// Quantity that the UNet predicts, named as in diffusers. At every step the latent is `z = a x0 + s noise` with
/// `a² + s² = 1`. `shaders/common/prediction.wgsl` uses the same codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise `noise`.
    #[default]
    Epsilon,
    /// The velocity `v = a noise - s x0`.
    VPrediction,
    /// The clean latent `x0`.
    Sample,
}

impl Prediction {
    /// All prediction types, for test cases.
    pub const ALL: [Self; 3] = [Self::Epsilon, Self::VPrediction, Self::Sample];

    /// Returns the code that the shader uses for the prediction type.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// Computes the clean latent from the prediction `p` and the latent `z`, in f32 for the CPU forms.
    #[inline]
    pub(crate) fn x0(self, p: f32, z: f32, a: f32, s: f32) -> f32 {
        match self {
            Self::Epsilon => (z - s * p) / a,
            Self::VPrediction => a * z - s * p,
            Self::Sample => p,
        }
    }

    /// Computes the noise from the prediction `p` and the latent `z`, in f32 for the CPU forms.
    #[inline]
    pub(crate) fn noise(self, p: f32, z: f32, a: f32, s: f32) -> f32 {
        match self {
            Self::Epsilon => p,
            Self::VPrediction => a * p + s * z,
            Self::Sample => (z - a * p) / s,
        }
    }
}
