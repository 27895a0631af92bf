//! Parameters of the builder's layers: what a layer takes besides its input tensor and its name.

use crate::graph::Tensor;
use mobilediffusion_kernels::{Activation, Phi, Prediction};

/// Parameters of a fully connected layer or a 1x1 convolution; see [`Graph::linear`](crate::Graph::linear).
#[derive(Clone, Copy, Debug, Default)]
pub struct Linear<'a> {
    /// Number of output features.
    pub cols: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Whether the checkpoint stores the weight as a 1x1 convolution, `[cols, k, 1, 1]`, instead of `[cols, k]`.
    pub pointwise: bool,
    /// Activation that is applied after the bias and before the residual is added.
    pub activation: Activation,
    /// Tensor of the output's shape that is added last.
    pub residual: Option<&'a Tensor>,
}

/// Parameters of a gated linear unit; see [`Graph::glu`](crate::Graph::glu).
///
/// One weight of `2 * cols` rows produces values and gates. The output is `value * gate(g)`.
#[derive(Clone, Copy, Debug)]
pub struct Glu {
    /// Number of output features.
    pub cols: usize,
    /// Whether the checkpoint stores the weight as a 1x1 convolution, `[2 * cols, k, 1, 1]`, instead of `[2 * cols,
    /// k]`.
    pub pointwise: bool,
    /// Activation that is applied to the gates.
    pub gate: Activation,
}

/// Parameters of a 3x3 convolution with bias; see [`Graph::conv2d`](crate::Graph::conv2d).
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// Number of output channels.
    pub channels: usize,
    /// Stride: 1 keeps the size, 2 halves it.
    pub stride: usize,
    /// Whether the size is doubled by nearest neighbour before the convolution.
    pub upsample: bool,
    /// Rows and columns of zero padding above and to the left: 1, or 0 in the downsampling layers of the VAE. Below and
    /// to the right there is always one.
    pub pad_start: usize,
    /// Tensor `[n, channels]` that is added to every pixel of an image: the projected time embedding.
    pub shift: Option<&'a Tensor>,
    /// Tensor of the output's shape that is added last.
    pub residual: Option<&'a Tensor>,
    /// Whether the output is f32 regardless of the plan's storage type. A residual is still added in the storage type.
    pub f32_output: bool,
}

impl Conv<'_> {
    /// Returns the parameters of a convolution that keeps the size: stride 1, one pixel of padding on every side, no
    /// upsampling, shift or residual.
    pub fn to(channels: usize) -> Self {
        Self { channels, stride: 1, upsample: false, pad_start: 1, shift: None, residual: None, f32_output: false }
    }
}

/// Parameters of a group normalisation; see [`Graph::group_norm`](crate::Graph::group_norm).
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Number of groups, which divides the channels.
    pub groups: usize,
    /// Constant added to the variance.
    pub eps: f32,
}

/// Sizes of the tables of a text encoder; see [`Graph::embedding`](crate::Graph::embedding).
#[derive(Clone, Copy, Debug)]
pub struct Embedding {
    /// Number of tokens that there are.
    pub vocab: usize,
    /// Number of positions.
    pub positions: usize,
    /// Number of channels.
    pub channels: usize,
}

/// Parameters of a step of a sampler; see [`Graph::ddim_step`](crate::Graph::ddim_step).
#[derive(Clone, Copy, Debug)]
pub struct SamplerStep<'a> {
    /// What the network predicts.
    pub prediction: Prediction,
    /// Whether the first half of the batch holds the unconditional images, and classifier-free guidance is applied. The
    /// one-step sampler has none.
    pub guided: bool,
    /// Fresh noise for the images.
    pub noise: Option<&'a Tensor>,
}

/// Parameters of an attention layer; see [`Graph::attention`](crate::Graph::attention).
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Number of heads.
    pub heads: usize,
    /// Function that turns scores into attention weights: softmax or relu.
    pub phi: Phi,
    /// Whether a query attends only to keys up to and including its own index.
    pub causal: bool,
}
