//! Decoders from a latent to a picture (docs/model.md, section 2).

use crate::blocks::{resample, residual_block};
use crate::config::DecoderConfig;
use mobilediffusion_graph::{Conv, Graph, GraphError, GroupNorm, Linear, Tensor};
use mobilediffusion_kernels::Activation;

/// Adds the light decoder to a graph and returns the picture, `[n, 8h, 8w, 3]`.
///
/// `latent` is `[n, h, w, latent_channels]` in the UNet's scale; the graph divides it by `scaling_factor`. Values of
/// the picture are in [-1, 1], except where the network overshoots. The light decoder has no middle block
/// (docs/model.md, section 2.2).
///
/// # Errors
/// [`GraphError`] if the configuration does not fit the latent; the error names the block.
pub fn decoder(g: &mut Graph, config: &DecoderConfig, latent: &Tensor) -> Result<Tensor, GraphError> {
    let levels = Levels {
        widths: &config.block_out_channels,
        layers: config.layers_per_up_block.clone(),
        norm: GroupNorm { groups: config.norm_num_groups, eps: config.norm_eps },
        scaling_factor: config.scaling_factor,
        colours: config.out_channels,
    };
    levels.decode(g, latent, |_, x| Ok(x))
}

/// Levels of a decoder, the part that the light decoder and the full VAE share.
pub(crate) struct Levels<'a> {
    /// Widths from the picture to the latent.
    pub widths: &'a [usize],
    /// Number of residual blocks of each level, from the latent to the picture.
    pub layers: Vec<usize>,
    /// Group normalisation of every block.
    pub norm: GroupNorm,
    /// Factor that the latent is divided by.
    pub scaling_factor: f32,
    /// Number of channels of the picture.
    pub colours: usize,
}

impl Levels<'_> {
    /// Adds a decoder to a graph, with `middle` between its first convolution and its levels.
    pub(crate) fn decode(
        &self,
        g: &mut Graph,
        latent: &Tensor,
        middle: impl FnOnce(&mut Graph, Tensor) -> Result<Tensor, GraphError>,
    ) -> Result<Tensor, GraphError> {
        let z = g.activate(latent, Activation::None, 1.0 / self.scaling_factor)?;
        let quant = Linear { cols: latent.channels(), bias: true, pointwise: true, ..Linear::default() };
        let z = g.linear(&z, "post_quant_conv", quant)?;
        g.tap("post_quant_conv", &z);
        g.scope("decoder", |g| {
            let widths: Vec<usize> = self.widths.iter().rev().copied().collect();
            let x = g.conv2d(&z, "conv_in", Conv::to(widths[0]))?;
            g.tap("conv_in", &x);
            let mut x = middle(g, x)?;
            for (block, (&width, &layers)) in widths.iter().zip(&self.layers).enumerate() {
                x = g.scope(&format!("up_blocks.{block}"), |g| {
                    for layer in 0..layers {
                        x = residual_block(g, &format!("resnets.{layer}"), &x, width, self.norm, None)?;
                    }
                    match block + 1 == widths.len() {
                        true => Ok(x),
                        false => resample(g, "upsamplers.0", &x, Conv { upsample: true, ..Conv::to(width) }),
                    }
                })?;
            }
            let x = g.group_norm(&x, "conv_norm_out", self.norm, Activation::Silu)?;
            let y = g.conv2d(&x, "conv_out", Conv::to(self.colours))?;
            g.tap("conv_out", &y);
            Ok(y)
        })
    }
}
