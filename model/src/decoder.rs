//! The light decoder (specification, section 2.2): from a latent to a picture, without attention.

use crate::blocks::{resample, residual_block};
use crate::config::DecoderConfig;
use mobilediffusion_graph::{Conv, Graph, GraphError, Linear, Tensor};
use mobilediffusion_kernels::Activation;

/// Adds the decoder to a graph. `latent [n, h, w, latent_channels]` as the UNet knows it (it is divided by
/// `scaling_factor` here); gives the picture `[n, 8h, 8w, 3]`, in [-1, 1] up to what the network oversteps.
///
/// # Errors
/// If the configuration and the latent do not fit; the error names the block.
pub fn decoder(g: &mut Graph, config: &DecoderConfig, latent: &Tensor) -> Result<Tensor, GraphError> {
    let z = g.activate(latent, Activation::None, 1.0 / config.scaling_factor)?;
    let quant = Linear { cols: config.latent_channels, bias: true, pointwise: true, ..Linear::default() };
    let z = g.linear(&z, "post_quant_conv", quant)?;
    g.tap("post_quant_conv", &z);
    g.scope("decoder", |g| {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let norm = (config.norm_num_groups, config.norm_eps);
        let mut x = g.conv2d(&z, "conv_in", Conv::to(widths[0]))?;
        g.tap("conv_in", &x);
        for (block, (&width, &layers)) in widths.iter().zip(&config.layers_per_up_block).enumerate() {
            x = g.scope(&format!("up_blocks.{block}"), |g| {
                for layer in 0..layers {
                    x = residual_block(g, &format!("resnets.{layer}"), &x, width, norm, None)?;
                }
                match block + 1 == widths.len() {
                    true => Ok(x),
                    false => resample(g, "upsamplers.0", &x, Conv { upsample: 2, ..Conv::to(width) }),
                }
            })?;
        }
        let x = g.group_norm(&x, "conv_norm_out", norm, Activation::Silu)?;
        let y = g.conv2d(&x, "conv_out", Conv::to(config.out_channels))?;
        g.tap("conv_out", &y);
        Ok(y)
    })
}
