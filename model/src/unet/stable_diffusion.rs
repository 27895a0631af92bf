//! Stable Diffusion's UNet with diffusers' names: the same residual blocks and transformers on every level.

use super::transformer::Heads;
use super::{Net, Transformer, time_embedding};
use crate::blocks::{resample, residual_block};
use crate::config::StableDiffusion;
use mobilediffusion_graph::{Conv, Graph, GraphError, GroupNorm, Tensor};
use mobilediffusion_kernels::{Activation, Phi};

pub(super) fn unet(
    g: &mut Graph,
    config: &StableDiffusion,
    latent: &Tensor,
    timestep: &Tensor,
    context: &Tensor,
) -> Result<Tensor, GraphError> {
    let groups = config.norm_num_groups;
    let net = StableDiffusionNet {
        config,
        norm: GroupNorm { groups, eps: config.norm_eps },
        time: time_embedding(g, timestep, (config.time_proj_dim(), config.time_embed_dim()))?,
        transformer: Transformer {
            context,
            norm: GroupNorm { groups, eps: StableDiffusion::TRANSFORMER_NORM_EPS },
            layer_norm_eps: StableDiffusion::LAYER_NORM_EPS,
            heads: Heads::Many(config.attention_head_dim),
            phi: Phi::Softmax,
            shared: false,
            ff_mult: StableDiffusion::FF_MULT,
            gate: Activation::Gelu,
        },
    };
    super::walk(g, &net, latent, (config.block_out_channels[0], config.out_channels), net.norm)
}

/// Configuration and tensors that all blocks of one UNet share.
struct StableDiffusionNet<'a> {
    config: &'a StableDiffusion,
    norm: GroupNorm,
    time: Tensor,
    transformer: Transformer<'a>,
}

impl Net for StableDiffusionNet<'_> {
    /// Adds the levels on the way down. The outputs of every layer and of every downsampler become skips.
    fn down(&self, g: &mut Graph, mut x: Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor, GraphError> {
        let widths = &self.config.block_out_channels;
        for (level, &width) in widths.iter().enumerate() {
            x = g.scope(&level.to_string(), |g| {
                for layer in 0..self.config.layers_per_block {
                    x = self.layer(g, layer, &x, width, self.config.attends(level))?;
                    skips.push(x.clone());
                }
                if level + 1 < widths.len() {
                    x = resample(g, "downsamplers.0", &x, Conv { stride: 2, ..Conv::to(width) })?;
                    skips.push(x.clone());
                }
                Ok::<_, GraphError>(x)
            })?;
        }
        Ok(x)
    }

    /// Adds two residual blocks with a transformer between them.
    fn middle(&self, g: &mut Graph, x: Tensor) -> Result<Tensor, GraphError> {
        let width = x.channels();
        let x = self.layer(g, 0, &x, width, true)?;
        self.layer(g, 1, &x, width, false)
    }

    fn levels_up(&self) -> Vec<(usize, usize)> {
        let layers = self.config.layers_per_block + 1;
        self.config.block_out_channels.iter().rev().map(|&width| (layers, width)).collect()
    }

    /// Adds `resnets.layer`, followed by `attentions.layer` if the level attends.
    fn layer_up(&self, g: &mut Graph, level: usize, layer: usize, joined: &Tensor) -> Result<Tensor, GraphError> {
        let level = self.config.block_out_channels.len() - 1 - level;
        self.layer(g, layer, joined, self.config.block_out_channels[level], self.config.attends(level))
    }
}

impl StableDiffusionNet<'_> {
    /// `resnets.layer`, then `attentions.layer` if there is one.
    fn layer(
        &self,
        g: &mut Graph,
        layer: usize,
        x: &Tensor,
        width: usize,
        attends: bool,
    ) -> Result<Tensor, GraphError> {
        let x = residual_block(g, &format!("resnets.{layer}"), x, width, self.norm, Some(&self.time))?;
        match attends {
            false => Ok(x),
            true => g.scope(&format!("attentions.{layer}"), |g| self.transformer.stack(g, &x, 1, true)),
        }
    }
}
