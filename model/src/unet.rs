//! The UNet (specification, section 1): what noise is in a latent, given a timestep and a text.

use crate::blocks::{resample, residual_block, shortcut, time_projection};
use crate::config::UnetConfig;
use mobilediffusion_graph::{Attend, Conv, Glu, Graph, GraphError, Linear, Tensor};
use mobilediffusion_kernels::Activation;

/// Adds the UNet to a graph. `latent [n, h, w, in_channels]` with `h` and `w` multiples of four, `timestep [n]`,
/// `context [n, keys, cross_attention_dim]`; gives the prediction `[n, h, w, out_channels]`.
///
/// # Errors
/// If the configuration and the inputs do not fit; the error names the block.
pub fn unet(
    g: &mut Graph,
    config: &UnetConfig,
    latent: &Tensor,
    timestep: &Tensor,
    context: &Tensor,
) -> Result<Tensor, GraphError> {
    let time = time_embedding(g, config, timestep)?;
    let net = Net { config, time: &time, context };
    let widths = &config.block_out_channels;
    let x = g.conv2d(latent, "conv_in", Conv::to(widths[0]))?;
    g.tap("conv_in", &x);

    let mut skips = vec![x.clone()];
    let x = g.scope("down_blocks", |g| net.down(g, x, &mut skips))?;
    let x = g.scope("mid_block", |g| net.middle(g, x))?;
    let x = g.scope("up_blocks", |g| net.up(g, x, &mut skips))?;

    let norm = (config.norm_num_groups, config.norm_eps);
    let x = g.group_norm(&x, "conv_norm_out", norm, Activation::Silu)?;
    let y = g.conv2d(&x, "conv_out", Conv::to(config.out_channels))?;
    g.tap("conv_out", &y);
    Ok(y)
}

/// `silu` of the time embedding, as every block wants it: sinusoids, then two layers.
fn time_embedding(g: &mut Graph, config: &UnetConfig, timestep: &Tensor) -> Result<Tensor, GraphError> {
    g.scope("time_embedding", |g| {
        let e = g.timestep_embedding(timestep, config.time_proj_dim)?;
        let layer =
            Linear { cols: config.time_embed_dim, bias: true, activation: Activation::Silu, ..Linear::default() };
        let e = g.linear(&e, "linear_1", layer)?;
        let e = g.linear(&e, "linear_2", layer)?;
        g.tap("", &e);
        Ok(e)
    })
}

/// What every block of one UNet sees.
struct Net<'a> {
    config: &'a UnetConfig,
    time: &'a Tensor,
    context: &'a Tensor,
}

impl Net<'_> {
    /// Levels before the middle. The output of every layer and of all but the last downsampler is kept for the way up.
    fn down(&self, g: &mut Graph, mut x: Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor, GraphError> {
        let levels = self.config.layers_down.len();
        for (level, &layers) in self.config.layers_down.iter().enumerate() {
            let width = self.config.block_out_channels[level];
            let depth = self.config.transformer_depth_down[level];
            let attends_itself = level == 1 && self.config.self_attention.down1;
            x = g.scope(&level.to_string(), |g| {
                for layer in 0..layers {
                    x = self.layer(g, layer, &x, (width, level == 0), depth, attends_itself)?;
                    skips.push(x.clone());
                }
                let halved = resample(g, "downsamplers.0", &x, Conv { stride: 2, ..Conv::to(width) })?;
                if level + 1 < levels {
                    skips.push(halved.clone());
                }
                Ok::<_, GraphError>(halved)
            })?;
        }
        Ok(x)
    }

    /// The middle: separable blocks and transformers at the lowest resolution, then back up one level.
    fn middle(&self, g: &mut Graph, mut x: Tensor) -> Result<Tensor, GraphError> {
        let width = *self.config.block_out_channels.last().expect("a validated configuration has levels");
        for (layer, &depth) in self.config.transformer_depth_mid.iter().enumerate() {
            x = self.layer(g, layer, &x, (width, false), depth, self.config.self_attention.mid)?;
        }
        resample(g, "upsamplers.0", &x, Conv { upsample: 2, ..Conv::to(width) })
    }

    /// Levels after the middle, each layer on what came before joined with a skip, the latest skip first.
    fn up(&self, g: &mut Graph, mut x: Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor, GraphError> {
        let levels = self.config.layers_up.len();
        for (index, &layers) in self.config.layers_up.iter().enumerate() {
            let level = levels - 1 - index;
            let width = self.config.block_out_channels[level];
            let depth = self.config.transformer_depth_up[index];
            let attends_itself = index == 0 && self.config.self_attention.up0;
            x = g.scope(&index.to_string(), |g| {
                for layer in 0..layers {
                    let skip = skips.pop().expect("a validated configuration has as many skips as layers");
                    let joined = g.scope(&format!("resnets.{layer}"), |g| g.concat(&x, &skip))?;
                    x = self.layer(g, layer, &joined, (width, level == 0), depth, attends_itself)?;
                }
                match level {
                    0 => Ok(x),
                    _ => resample(g, "upsamplers.0", &x, Conv { upsample: 2, ..Conv::to(width) }),
                }
            })?;
        }
        Ok(x)
    }

    /// `resnets.layer`, then `attentions.layer` if there is one. The outermost level keeps full convolutions.
    fn layer(
        &self,
        g: &mut Graph,
        layer: usize,
        x: &Tensor,
        (width, outermost): (usize, bool),
        depth: usize,
        attends_itself: bool,
    ) -> Result<Tensor, GraphError> {
        let norm = (self.config.norm_num_groups, self.config.norm_eps);
        let name = format!("resnets.{layer}");
        let x = match outermost {
            true => residual_block(g, &name, x, width, norm, Some(self.time))?,
            false => self.separable_block(g, &name, x, width)?,
        };
        match depth {
            0 => Ok(x),
            _ => g.scope(&format!("attentions.{layer}"), |g| self.transformer(g, &x, depth, attends_itself)),
        }
    }

    /// A separable block (specification, section 1.4):
    /// `y = shortcut(x) + pwconv2(silu(pwconv1(norm(dwconv(x) + time))))`.
    fn separable_block(&self, g: &mut Graph, name: &str, x: &Tensor, width: usize) -> Result<Tensor, GraphError> {
        g.scope(name, |g| {
            let shift = time_projection(g, self.time, x.channels())?;
            let h = g.depthwise_conv2d(x, "dwconv", Some(&shift))?;
            let norm = (self.config.norm_num_groups, self.config.norm_eps);
            let h = g.group_norm(&h, "norm", norm, Activation::None)?;
            let hidden = self.config.sep_expansion * width;
            let pointwise = Linear { bias: true, pointwise: true, ..Linear::default() };
            let h = g.linear(&h, "pwconv1", Linear { cols: hidden, activation: Activation::Silu, ..pointwise })?;
            let residual = shortcut(g, x, width)?;
            let y = g.linear(&h, "pwconv2", Linear { cols: width, residual: Some(&residual), ..pointwise })?;
            g.tap("", &y);
            Ok(y)
        })
    }

    /// A stack of transformer layers on the pixels as tokens (specification, section 1.5).
    fn transformer(&self, g: &mut Graph, x: &Tensor, depth: usize, attends_itself: bool) -> Result<Tensor, GraphError> {
        let (n, d) = (x.shape()[0], x.channels());
        let norm = (self.config.norm_num_groups, self.config.transformer_norm_eps);
        let pointwise = Linear { cols: d, bias: true, pointwise: true, ..Linear::default() };
        let h = g.group_norm(x, "norm", norm, Activation::None)?;
        let h = g.linear(&h, "proj_in", pointwise)?;
        let mut h = h.reshaped([n, x.rows() / n, d]);
        for i in 0..depth {
            h = g.scope(&format!("transformer_blocks.{i}"), |g| self.transformer_layer(g, &h, attends_itself))?;
        }
        let h = h.reshaped(x.shape());
        let y = g.linear(&h, "proj_out", Linear { residual: Some(x), ..pointwise })?;
        g.tap("", &y);
        Ok(y)
    }

    /// Self-attention where there is some, cross-attention to the text, and the gated feed-forward.
    fn transformer_layer(&self, g: &mut Graph, h: &Tensor, attends_itself: bool) -> Result<Tensor, GraphError> {
        let (config, d) = (self.config, h.channels());
        let mut h = h.clone();
        if attends_itself {
            let n = g.layer_norm(&h, "norm1", config.layer_norm_eps)?;
            h = g.scope("attn1", |g| self.attention(g, &n, &n, &h, config.share_kv_self_attention))?;
        }
        let n = g.layer_norm(&h, "norm2", config.layer_norm_eps)?;
        h = g.scope("attn2", |g| self.attention(g, &n, self.context, &h, false))?;
        let n = g.layer_norm(&h, "norm3", config.layer_norm_eps)?;
        let gated = Glu { cols: config.ff_mult * d, pointwise: false, gate: Activation::Silu };
        let inner = g.glu(&n, "ff.net.0.proj", gated)?;
        let out = Linear { cols: d, bias: true, residual: Some(&h), ..Linear::default() };
        let y = g.linear(&inner, "ff.net.2", out)?;
        g.tap("", &y);
        Ok(y)
    }

    /// `h + to_out(attention(to_q n, to_k source, to_v source))`; with shared keys and values one projection, `to_kv`.
    fn attention(
        &self,
        g: &mut Graph,
        n: &Tensor,
        source: &Tensor,
        h: &Tensor,
        shared: bool,
    ) -> Result<Tensor, GraphError> {
        let d = h.channels();
        let projection = Linear { cols: d, ..Linear::default() };
        let q = g.linear(n, "to_q", projection)?;
        let heads = d / self.config.attention_head_dim;
        let attend = Attend { heads, phi: self.config.attention_phi, causal: false };
        let y = if shared {
            let kv = g.linear(source, "to_kv", projection)?;
            g.attention(&q, &kv, None, attend)?
        } else {
            let k = g.linear(source, "to_k", projection)?;
            let v = g.linear(source, "to_v", projection)?;
            g.attention(&q, &k, Some(&v), attend)?
        };
        g.linear(&y, "to_out.0", Linear { bias: true, residual: Some(h), ..projection })
    }
}
