//! What layers of the builder take besides their input.

use crate::graph::Tensor;
use mobilediffusion_kernels::{Activation, Phi};

/// A fully connected layer, or a 1x1 convolution.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linear<'a> {
    /// Output features.
    pub cols: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Whether the weight is stored as a 1x1 convolution, `[cols, k, 1, 1]`.
    pub pointwise: bool,
    /// Applied before the residual is added.
    pub activation: Activation,
    /// Added last.
    pub residual: Option<&'a Tensor>,
}

/// A gated layer: values times what an activation makes of gates, both from one weight of twice as many rows.
#[derive(Clone, Copy, Debug)]
pub struct Glu {
    /// Output features.
    pub cols: usize,
    /// Whether the weight is stored as a 1x1 convolution, `[2 * cols, k, 1, 1]`.
    pub pointwise: bool,
    /// What the gates go through.
    pub gate: Activation,
}

/// A 3x3 convolution with bias and one pixel of zeros around, or only below and to the right.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// Output channels.
    pub channels: usize,
    /// 2 halves the size.
    pub stride: usize,
    /// 2 doubles the size by nearest neighbour before convolving.
    pub upsample: usize,
    /// Pixels of zeros above and to the left: 1, or 0 in the VAE's halvings. Below and to the right there is one.
    pub pad_start: usize,
    /// `[n, channels]`, added to every pixel of an image: the time embedding.
    pub shift: Option<&'a Tensor>,
    /// Added last.
    pub residual: Option<&'a Tensor>,
    /// Whether the output is f32 however the plan stores floats; a residual is added as those are.
    pub f32_output: bool,
}

impl Conv<'_> {
    /// A convolution that keeps the size.
    pub fn to(channels: usize) -> Self {
        Self { channels, stride: 1, upsample: 1, pad_start: 1, shift: None, residual: None, f32_output: false }
    }
}

/// How a layer attends.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Heads.
    pub heads: usize,
    /// What becomes of the scores.
    pub phi: Phi,
    /// Whether a query sees only the keys up to its own index.
    pub causal: bool,
}
