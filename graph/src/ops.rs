//! Layers of the builder: one method of [`Graph`] for each. Weights are named as in the checkpoint, below the current
//! path.

use crate::error::GraphError;
use crate::graph::{Graph, Tensor, WeightRows};
use crate::layers::{Attend, Conv, Embedding, Glu, GroupNorm, Linear, SamplerStep};
use mobilediffusion_kernels as kernels;
use mobilediffusion_kernels::kernel::LARGEST_BINDING;
use mobilediffusion_kernels::{Activation, DType};
use std::ops::Range;

/// Returns the shape `[n, h, w, c]` of a feature map, or an error if `x` does not have four axes.
fn map_size(x: &Tensor, node: &str) -> Result<[usize; 4], GraphError> {
    <[usize; 4]>::try_from(x.shape()).map_err(|_| GraphError::Size {
        node: node.to_owned(),
        what: "number of axes",
        expected: "4, as in [n, h, w, c]".to_owned(),
        found: x.shape().len(),
    })
}

/// Returns the shape of `x` with another number of channels.
fn with_channels(x: &Tensor, channels: usize) -> Vec<usize> {
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = channels;
    }
    shape
}

impl Graph {
    /// Returns the number of images of a batch and of the positions of each, or an error if there is nothing in it.
    fn images(&self, x: &Tensor, name: &str) -> Result<[usize; 2], GraphError> {
        match x.shape().first() {
            Some(&n) if n > 0 && x.channels() > 0 => Ok([n, x.rows() / n]),
            _ => Err(self.size_error(name, "number of images or channels", "at least 1".to_owned(), 0)),
        }
    }

    fn size_error(&self, name: &str, what: &'static str, expected: String, found: usize) -> GraphError {
        GraphError::Size { node: self.path_of(name), what, expected, found }
    }

    /// Adds a fully connected layer, `[.., k] -> [.., cols]`: `residual + activation(x wᵀ + bias)`.
    ///
    /// The weights are `name.weight` and, if the layer has a bias, `name.bias`.
    ///
    /// # Errors
    /// If the residual does not have the size of the output, or the kernel does not support the problem.
    pub fn linear(&mut self, x: &Tensor, name: &str, layer: Linear<'_>) -> Result<Tensor, GraphError> {
        let k = x.channels();
        let (w, bias) = self.scope(name, |g| {
            let w = if layer.pointwise { vec![layer.cols, k, 1, 1] } else { vec![layer.cols, k] };
            (g.weight("weight", w), layer.bias.then(|| g.weight("bias", [layer.cols])))
        });
        let kernel = kernels::Linear { rows: x.rows(), k, cols: layer.cols, bias: layer.bias, ..Default::default() };
        let y = self.step_as(name, kernel, &[Some(x), Some(&w), bias.as_ref()], with_channels(x, layer.cols))?;
        let y = match layer.activation {
            Activation::None => y,
            activation => self.activate_as(&y, name, activation, 1.0)?,
        };
        self.plus(&y, name, layer.residual)
    }

    /// Adds the residual of the layer `name` to its result `x`, if it has one.
    fn plus(&mut self, x: &Tensor, name: &str, residual: Option<&Tensor>) -> Result<Tensor, GraphError> {
        let Some(residual) = residual else { return Ok(x.clone()) };
        let kernel = kernels::Add { rows: x.rows(), c: x.channels() };
        self.step_as(name, kernel, &[Some(x), Some(residual)], x.shape())
    }

    fn activate_as(
        &mut self,
        x: &Tensor,
        name: &str,
        activation: Activation,
        scale: f32,
    ) -> Result<Tensor, GraphError> {
        let kernel = kernels::Activate { rows: x.rows(), c: x.channels(), activation, scale };
        self.step_as(name, kernel, &[Some(x)], x.shape())
    }

    /// Adds a gated linear unit, the first half of a feed-forward network, `[.., k] -> [.., cols]`: `a * gate(g)`,
    /// where `a` and `g` are the halves of `x wᵀ + bias`.
    ///
    /// The weights are `name.weight` and `name.bias`, of `2 * cols` rows each.
    ///
    /// # Errors
    /// If the kernel does not support the problem.
    pub fn glu(&mut self, x: &Tensor, name: &str, layer: Glu) -> Result<Tensor, GraphError> {
        let k = x.channels();
        let Glu { cols, pointwise, gate } = layer;
        let shape = if pointwise { vec![2 * cols, k, 1, 1] } else { vec![2 * cols, k] };
        let (w, bias) = self.scope(name, |g| (g.weight("weight", shape), g.weight("bias", [2 * cols])));
        let kernel = kernels::SwishGlu { rows: x.rows(), k, cols, gate, prologue: kernels::Prologue::default() };
        self.step_as(name, kernel, &[Some(x), Some(&w), Some(&bias)], with_channels(x, cols))
    }

    /// Adds a 3x3 convolution, `[n, h, w, c] -> [n, h', w', channels]`: `residual + (conv(x, w) + bias + shift)`.
    ///
    /// The weights are `name.weight`, `[channels, c, 3, 3]`, and `name.bias`.
    ///
    /// # Errors
    /// If `x` does not have four axes, its height or width (after upsampling) is not a multiple of the stride, or the
    /// shift or the residual has the wrong size.
    pub fn conv2d(&mut self, x: &Tensor, name: &str, layer: Conv<'_>) -> Result<Tensor, GraphError> {
        let [n, h, w, ci] = map_size(x, &self.path_of(name))?;
        let scale = if layer.upsample { 2 } else { 1 };
        for size in [h, w] {
            if !(scale * size).is_multiple_of(layer.stride) {
                let expected = format!("a multiple of {}", layer.stride);
                return Err(self.size_error(name, "height or width", expected, size));
            }
        }
        let co = layer.channels;
        let (x, [h, w]) = if layer.upsample {
            let up = kernels::UpsampleNearest { n, h, w, c: ci };
            (self.step_as(name, up, &[Some(x)], [n, 2 * h, 2 * w, ci])?, [2 * h, 2 * w])
        } else {
            (x.clone(), [h, w])
        };
        let (weight, bias) = self.scope(name, |g| (g.weight("weight", [co, ci, 3, 3]), g.weight("bias", [co])));
        let kernel = kernels::Conv2d {
            n,
            h,
            w,
            ci,
            co,
            kernel: 3,
            stride: layer.stride,
            pad_start: layer.pad_start,
            pad_end: 1,
            upsample: 1,
            bias: true,
            shift: layer.shift.is_some(),
            f32_output: layer.f32_output,
            ..Default::default()
        };
        let (oh, ow) = kernel.out_size();
        let inputs = [Some(&x), Some(&weight), Some(&bias), layer.shift];
        let y = self.step_as(name, kernel, &inputs, [n, oh, ow, co])?;
        self.plus(&y, name, layer.residual)
    }

    /// Adds a depthwise 3x3 convolution with bias, `[n, h, w, c] -> [n, h / stride, w / stride, c]`.
    ///
    /// `shift`, if given, has shape `[n, c]` and is added to every pixel of its image. The weights are `name.weight`,
    /// `[c, 1, 3, 3]`, and `name.bias`.
    ///
    /// # Errors
    /// If `x` does not have four axes, its height or width is not a multiple of the stride, or the shift has the wrong
    /// size.
    pub fn depthwise_conv2d(
        &mut self,
        x: &Tensor,
        name: &str,
        stride: usize,
        shift: Option<&Tensor>,
    ) -> Result<Tensor, GraphError> {
        let [n, h, w, c] = map_size(x, &self.path_of(name))?;
        if let Some(size) = [h, w].into_iter().find(|size| !size.is_multiple_of(stride)) {
            return Err(self.size_error(name, "height or width", format!("a multiple of {stride}"), size));
        }
        let (weight, bias) = self.scope(name, |g| (g.weight("weight", [c, 1, 3, 3]), g.weight("bias", [c])));
        let (shifted, prologue) = (shift.is_some(), kernels::Prologue::default());
        let kernel =
            kernels::DepthwiseConv2d { n, h, w, c, stride, bias: true, shift: shifted, prologue, moments: false };
        let (oh, ow) = kernel.out_size();
        self.step_as(name, kernel, &[Some(x), Some(&weight), Some(&bias), shift], [n, oh, ow, c])
    }

    /// Adds a group normalisation over the positions of each image, followed by an activation. `(groups, eps)` are the
    /// number of groups and the term that is added to the variance.
    ///
    /// The layer consists of three steps: statistics of the groups, scale and offset of every channel, and their
    /// application. The weights are `name.weight` and `name.bias`, `[c]` each.
    ///
    /// # Errors
    /// If the number of channels is not a multiple of the number of groups.
    pub fn group_norm(
        &mut self,
        x: &Tensor,
        name: &str,
        GroupNorm { groups, eps }: GroupNorm,
        activation: Activation,
    ) -> Result<Tensor, GraphError> {
        let ([n, positions], c) = (self.images(x, name)?, x.channels());
        if groups == 0 || !c.is_multiple_of(groups) {
            return Err(self.size_error(name, "channels", format!("a multiple of the {groups} groups"), c));
        }
        let stats_kernel = kernels::GroupNormStats { n, positions, c, groups, eps };
        let stats = self.step_as(name, stats_kernel, &[Some(x)], [n, groups, 2])?;
        let (weight, bias) = self.scope(name, |g| (g.weight("weight", [c]), g.weight("bias", [c])));
        let scale_kernel = kernels::GroupNormScale { n, positions, c, groups, eps: None };
        let norm = self.step_as(name, scale_kernel, &[Some(&stats), None, Some(&weight), Some(&bias)], [n, 2, c])?;
        let kernel = kernels::GroupNorm::new(n, positions, c, activation);
        self.step_as(name, kernel, &[Some(x), None, Some(&norm)], x.shape())
    }

    /// Adds a layer normalisation over the channels, with `eps` added to the variance.
    ///
    /// The weights are `name.weight` and `name.bias`, `[c]` each.
    ///
    /// # Errors
    /// If the kernel does not support the problem.
    pub fn layer_norm(&mut self, x: &Tensor, name: &str, eps: f32) -> Result<Tensor, GraphError> {
        let c = x.channels();
        let (weight, bias) = self.scope(name, |g| (g.weight("weight", [c]), g.weight("bias", [c])));
        let kernel = kernels::LayerNorm { rows: x.rows(), c, eps };
        self.step_as(name, kernel, &[Some(x), Some(&weight), Some(&bias)], x.shape())
    }

    /// Adds multi-head attention of the queries `q`, `[n, queries, d]`, to the keys `k` and values `v`, `[n, keys, d]`
    /// each; returns `[n, queries, d]`. If `v` is `None`, the keys are also the values.
    ///
    /// # Errors
    /// If `d` is not a multiple of the number of heads, the head size is not a multiple of four up to 512, or the
    /// shapes do not match.
    pub fn attention(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: Option<&Tensor>,
        attend: Attend,
    ) -> Result<Tensor, GraphError> {
        let ([n, queries], d) = (self.images(q, "")?, q.channels());
        let head_dim = d / attend.heads.max(1);
        let most = kernels::Attention::MOST_HEAD_DIM;
        if head_dim * attend.heads != d || !head_dim.is_multiple_of(4) || !(4..=most).contains(&head_dim) {
            let expected = format!("{} heads with a multiple of 4 channels each, at most {most}", attend.heads);
            return Err(self.size_error("", "channels", expected, d));
        }
        let kernel = kernels::Attention {
            n,
            queries,
            keys: k.rows() / n,
            heads: attend.heads,
            head_dim,
            phi: attend.phi,
            causal: attend.causal,
            shared: v.is_none(),
        };
        self.step_as("", kernel, &[Some(q), Some(k), v], q.shape())
    }

    /// Adds a concatenation along the channels: the channels of `a`, then those of `b`.
    ///
    /// # Errors
    /// If `a` and `b` differ in the number of positions.
    pub fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, GraphError> {
        let kernel = kernels::Concat { rows: a.rows(), a_channels: a.channels(), b_channels: b.channels() };
        self.step_as("concat", kernel, &[Some(a), Some(b)], with_channels(a, a.channels() + b.channels()))
    }

    /// Adds a slice of the channels: `scale * x[.., range]`.
    ///
    /// # Errors
    /// If `x` has fewer channels than the range ends with, or the range is empty.
    pub fn slice(&mut self, x: &Tensor, range: Range<usize>, scale: f32) -> Result<Tensor, GraphError> {
        let (channels, first, c) = (x.channels(), range.start, range.len());
        if range.end > channels {
            return Err(self.size_error("slice", "channels", format!("at least {}", range.end), channels));
        }
        let kernel = kernels::Slice { rows: x.rows(), channels, first, c, scale };
        self.step_as("slice", kernel, &[Some(x)], with_channels(x, c))
    }

    /// Adds an elementwise activation: `activation(scale * x)`.
    ///
    /// # Errors
    /// If the kernel does not support the problem.
    pub fn activate(&mut self, x: &Tensor, activation: Activation, scale: f32) -> Result<Tensor, GraphError> {
        self.activate_as(x, "activation", activation, scale)
    }

    /// Adds the sum of token and position embeddings, `[n, l] -> [n, l, c]`, for token ids of type u32.
    ///
    /// The weights are `token_embedding.weight`, `[vocab, c]`, and `position_embedding.weight`, `[positions, c]`. A
    /// token table beyond the 128 MiB that WebGPU guarantees for a storage binding is bound as two tensors.
    ///
    /// # Errors
    /// If there are more tokens than positions.
    pub fn embedding(
        &mut self,
        ids: &Tensor,
        Embedding { vocab, positions, channels: c }: Embedding,
    ) -> Result<Tensor, GraphError> {
        let ([n, _], l) = (self.images(ids, "embeddings")?, ids.channels());
        if l > positions {
            return Err(self.size_error("embeddings", "tokens", format!("at most {positions}"), l));
        }
        let name = self.path_of("token_embedding.weight");
        let part = |rows| WeightRows { name: name.clone(), shape: vec![vocab, c], rows };
        let first = vocab.min(LARGEST_BINDING / (4 * c.next_multiple_of(4)).max(1));
        let token = self.weight_rows(part(0..first));
        let rest = (first < vocab).then(|| self.weight_rows(part(first..vocab)));
        let position = self.weight("position_embedding.weight", [positions, c]);
        let kernel = kernels::Embedding { n, l, vocab, rest: vocab - first, positions, c };
        self.step_as("", kernel, &[Some(ids), Some(&token), rest.as_ref(), Some(&position)], [n, l, c])
    }

    /// Adds the sinusoidal embedding of the timesteps `t`, `[n] -> [n, dim]`, cosines first.
    ///
    /// # Errors
    /// If `dim` is odd.
    pub fn timestep_embedding(&mut self, t: &Tensor, dim: usize) -> Result<Tensor, GraphError> {
        if !dim.is_multiple_of(2) {
            return Err(self.size_error("timestep_embedding", "dim", "an even number".to_owned(), dim));
        }
        let n = t.channels();
        let values = kernels::TimestepEmbedding::frequencies(dim);
        let frequencies = self.constant("frequencies", [dim / 2], DType::F32, values);
        let kernel = kernels::TimestepEmbedding { n, dim };
        self.step_as("timestep_embedding", kernel, &[Some(t), Some(&frequencies)], [n, dim])
    }

    /// Adds a step of DDIM, or of the one-step sampler, which is one that keeps none of the predicted noise: the next
    /// latent, computed from `latent`, the network's `prediction` and the step's `coefficients`.
    ///
    /// # Errors
    /// If the shapes do not match.
    pub fn ddim_step(
        &mut self,
        latent: &Tensor,
        prediction: &Tensor,
        coefficients: &Tensor,
        SamplerStep { prediction: kind, guided, noise }: SamplerStep<'_>,
    ) -> Result<Tensor, GraphError> {
        let ([n, positions], c) = (self.images(latent, "ddim_step")?, latent.channels());
        let images = if guided { n / 2 } else { n };
        let kernel = kernels::DdimStep { images, positions, c, guided, prediction: kind, noise: noise.is_some() };
        let inputs = [Some(latent), Some(prediction), Some(coefficients), noise];
        self.step_as("ddim_step", kernel, &inputs, latent.shape())
    }

    /// Adds a conversion of a picture `[n, h, w, 3]` with values in [-1, 1] to RGBA pixels of four bytes, `[n, h, w]`
    /// of type u32.
    ///
    /// # Errors
    /// If `x` does not have four axes, or does not have three channels.
    pub fn rgba8(&mut self, x: &Tensor) -> Result<Tensor, GraphError> {
        let [n, h, w, _] = map_size(x, &self.path_of("rgba8"))?;
        self.step("rgba8", kernels::Rgba8 { n, h, w }, &[Some(x)])
    }
}
