//! MobileDiffusion's UNet (docs/model.md, section 1) and its alternatives (section 1.8).

use super::transformer::Heads;
use super::{Net, Transformer, time_embedding};
use crate::blocks::{resample, residual_block, shortcut, time_projection};
use crate::config::{MobileDiffusion, SepKind, SepSampler};
use mobilediffusion_graph::{Conv, Glu, Graph, GraphError, GroupNorm, Linear, Tensor};
use mobilediffusion_kernels::Activation;

pub(super) fn unet(
    g: &mut Graph,
    config: &MobileDiffusion,
    latent: &Tensor,
    timestep: &Tensor,
    context: &Tensor,
) -> Result<Tensor, GraphError> {
    let groups = config.norm_num_groups;
    let net = MobileDiffusionNet {
        config,
        norm: GroupNorm { groups, eps: config.norm_eps },
        time: time_embedding(g, timestep, (config.time_proj_dim, config.time_embed_dim))?,
        transformer: Transformer {
            context,
            norm: GroupNorm { groups, eps: config.transformer_norm_eps },
            layer_norm_eps: config.layer_norm_eps,
            heads: Heads::Wide(config.attention_head_dim),
            phi: config.attention_phi,
            shared: config.share_kv_self_attention,
            ff_mult: config.ff_mult,
            gate: config.ff_activation.gate(),
        },
    };
    super::walk(g, &net, latent, (config.block_out_channels[0], config.out_channels), net.norm)
}

/// Configuration and tensors that all blocks of one UNet share.
struct MobileDiffusionNet<'a> {
    config: &'a MobileDiffusion,
    norm: GroupNorm,
    time: Tensor,
    transformer: Transformer<'a>,
}

impl Net for MobileDiffusionNet<'_> {
    /// Adds the two levels on the way down. The outputs of every layer and of the first downsampler become skips; the
    /// innermost downsampler leads into the middle module only.
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
                let halved = match level == 1 && self.config.sep_samplers.contains(&SepSampler::Down1) {
                    true => separable_downsampler(g, &x)?,
                    false => resample(g, "downsamplers.0", &x, Conv { stride: 2, ..Conv::to(width) })?,
                };
                if level + 1 < levels {
                    skips.push(halved.clone());
                }
                Ok::<_, GraphError>(halved)
            })?;
        }
        Ok(x)
    }

    /// Adds the separable blocks and transformers at the lowest resolution, then the upsampler.
    fn middle(&self, g: &mut Graph, mut x: Tensor) -> Result<Tensor, GraphError> {
        let width = *self.config.block_out_channels.last().expect("a validated configuration has levels");
        for (layer, &depth) in self.config.transformer_depth_mid.iter().enumerate() {
            x = self.layer(g, layer, &x, (width, false), depth, self.config.mid_attends_itself(layer))?;
        }
        resample(g, "upsamplers.0", &x, Conv { upsample: true, ..Conv::to(width) })
    }

    fn levels_up(&self) -> Vec<(usize, usize)> {
        let widths = self.config.block_out_channels[..self.config.layers_up.len()].iter().rev();
        self.config.layers_up.iter().copied().zip(widths.copied()).collect()
    }

    /// Adds `resnets.layer`, followed by `attentions.layer` if `depth` is not zero. The outermost level keeps full
    /// convolutions.
    fn layer_up(&self, g: &mut Graph, level: usize, layer: usize, joined: &Tensor) -> Result<Tensor, GraphError> {
        let from_outermost = self.config.layers_up.len() - 1 - level;
        let width = self.config.block_out_channels[from_outermost];
        let attends_itself = level == 0 && self.config.self_attention.up0;
        let depth = self.config.transformer_depth_up[level];
        self.layer(g, layer, joined, (width, from_outermost == 0), depth, attends_itself)
    }
}

impl MobileDiffusionNet<'_> {
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
        let name = format!("resnets.{layer}");
        let x = match outermost {
            true => residual_block(g, &name, x, width, self.norm, Some(&self.time))?,
            false => self.separable_block(g, &name, x, width)?,
        };
        match depth {
            0 => Ok(x),
            _ => g.scope(&format!("attentions.{layer}"), |g| self.transformer.stack(g, &x, depth, attends_itself)),
        }
    }

    /// Adds a separable block (docs/model.md, sections 1.4 and 1.8): one or two units, and the shortcut around them.
    fn separable_block(&self, g: &mut Graph, name: &str, x: &Tensor, width: usize) -> Result<Tensor, GraphError> {
        g.scope(name, |g| {
            let shift = time_projection(g, &self.time, x.channels())?;
            let y = if self.config.sep_kind == SepKind::Convnext2 {
                let h = g.scope("units.0", |g| self.unit(g, x, width, Some(&shift), None))?;
                let residual = shortcut(g, x, width)?;
                g.scope("units.1", |g| self.unit(g, &h, width, None, Some(&residual)))?
            } else {
                let residual = shortcut(g, x, width)?;
                self.unit(g, x, width, Some(&shift), Some(&residual))?
            };
            g.tap("", &y);
            Ok(y)
        })
    }

    /// Adds one unit, `residual + pwconv2(silu(pwconv1(norm(dwconv(x) + shift))))`, with a gate in place of the silu
    /// for [`SepKind::Glu`].
    fn unit(
        &self,
        g: &mut Graph,
        x: &Tensor,
        width: usize,
        shift: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, GraphError> {
        let h = g.depthwise_conv2d(x, "dwconv", 1, shift)?;
        let h = g.group_norm(&h, "norm", self.norm, Activation::None)?;
        let hidden = self.config.sep_hidden(x.channels(), width);
        let pointwise = Linear { bias: true, pointwise: true, ..Linear::default() };
        let h = match self.config.sep_kind {
            SepKind::Glu => g.glu(&h, "pwconv1", Glu { cols: hidden, pointwise: true, gate: Activation::Silu })?,
            SepKind::Convnext | SepKind::Convnext2 => {
                g.linear(&h, "pwconv1", Linear { cols: hidden, activation: Activation::Silu, ..pointwise })?
            }
        };
        g.linear(&h, "pwconv2", Linear { cols: width, residual, ..pointwise })
    }
}

/// Adds a downsampler of a depthwise and a pointwise convolution.
fn separable_downsampler(g: &mut Graph, x: &Tensor) -> Result<Tensor, GraphError> {
    g.scope("downsamplers.0", |g| {
        let h = g.depthwise_conv2d(x, "depthwise", 2, None)?;
        let pointwise = Linear { cols: x.channels(), bias: true, pointwise: true, ..Linear::default() };
        let y = g.linear(&h, "pointwise", pointwise)?;
        g.tap("", &y);
        Ok(y)
    })
}
