//! Full VAE (docs/model.md, section 2.1): the encoder from a picture to a latent, and the decoder it was trained
//! with.

use crate::blocks::{resample, residual_block};
use crate::config::{PIXELS_PER_LATENT, VaeConfig};
use crate::decoder::Levels;
use mobilediffusion_graph::{Attend, Conv, Graph, GraphError, GroupNorm, Linear, Tensor};
use mobilediffusion_kernels::{Activation, DType, Phi};

/// Returns the group normalisation of every block.
fn norm(config: &VaeConfig) -> GroupNorm {
    GroupNorm { groups: config.norm_num_groups, eps: VaeConfig::NORM_EPS }
}

/// Adds the encoder to a graph and returns the moments of the unscaled latent, `[n, h, w, 2 * latent_channels]`:
/// means, then logarithms of variances.
///
/// `image` is `[n, 8h, 8w, 3]` in [-1, 1].
///
/// # Errors
/// [`GraphError`] if the configuration does not fit the image; the error names the block.
pub(crate) fn encoder(g: &mut Graph, config: &VaeConfig, image: &Tensor) -> Result<Tensor, GraphError> {
    let moments = 2 * config.latent_channels;
    let y = g.scope("encoder", |g| {
        let widths = &config.block_out_channels;
        let mut x = g.conv2d(image, "conv_in", Conv::to(widths[0]))?;
        g.tap("conv_in", &x);
        for (block, &width) in widths.iter().enumerate() {
            x = g.scope(&format!("down_blocks.{block}"), |g| {
                for layer in 0..config.layers_per_block {
                    x = residual_block(g, &format!("resnets.{layer}"), &x, width, norm(config), None)?;
                }
                let halved = Conv { stride: 2, pad_start: 0, ..Conv::to(width) };
                match block + 1 == widths.len() {
                    true => Ok(x),
                    false => resample(g, "downsamplers.0", &x, halved),
                }
            })?;
        }
        let x = middle(g, config, &x)?;
        let x = g.group_norm(&x, "conv_norm_out", norm(config), Activation::Silu)?;
        let y = g.conv2d(&x, "conv_out", Conv::to(moments))?;
        g.tap("conv_out", &y);
        Ok::<_, GraphError>(y)
    })?;
    let quant = Linear { cols: moments, bias: true, pointwise: true, ..Linear::default() };
    let y = g.linear(&y, "quant_conv", quant)?;
    g.tap("quant_conv", &y);
    Ok(y)
}

/// Adds the selection of the UNet's latent `[n, h, w, latent_channels]`: the means of the encoder's `moments` times
/// `scaling_factor`.
///
/// # Errors
/// [`GraphError`] if `moments` do not have the channels of this configuration.
pub(crate) fn latent(g: &mut Graph, config: &VaeConfig, moments: &Tensor) -> Result<Tensor, GraphError> {
    g.slice(moments, 0..config.latent_channels, config.scaling_factor)
}

/// Adds the full decoder to a graph and returns the picture, `[n, 8h, 8w, 3]`. `latent` is in the UNet's scale, as
/// for the light [`decoder`](crate::decoder::decoder); the full decoder has a middle block as well.
///
/// # Errors
/// [`GraphError`] if the configuration does not fit the latent; the error names the block.
pub(crate) fn decoder(g: &mut Graph, config: &VaeConfig, latent: &Tensor) -> Result<Tensor, GraphError> {
    let levels = Levels {
        widths: &config.block_out_channels,
        layers: vec![config.layers_per_block + 1; config.block_out_channels.len()],
        norm: norm(config),
        scaling_factor: config.scaling_factor,
        colours: config.out_channels,
    };
    levels.decode(g, latent, |g, x| middle(g, config, &x))
}

/// Returns the names and shapes of the weights of both halves, which one folder holds.
///
/// # Errors
/// [`GraphError`] if no network can be built from the configuration; the error names the block.
pub(crate) fn weights(config: &VaeConfig) -> Result<Vec<(String, Vec<usize>)>, GraphError> {
    // They do not depend on the size of the picture.
    let (mut g, side) = (Graph::new(), PIXELS_PER_LATENT);
    let image = g.input("image", [1, side, side, config.in_channels], DType::F32);
    encoder(&mut g, config, &image)?;
    let latent = g.input("latent", [1, 1, 1, config.latent_channels], DType::F32);
    decoder(&mut g, config, &latent)?;
    Ok(g.weights())
}

/// Adds the middle block at the latent's size: residual block, attention, residual block.
fn middle(g: &mut Graph, config: &VaeConfig, x: &Tensor) -> Result<Tensor, GraphError> {
    g.scope("mid_block", |g| {
        let width = x.channels();
        let x = residual_block(g, "resnets.0", x, width, norm(config), None)?;
        let x = g.scope("attentions.0", |g| attention(g, config, &x))?;
        residual_block(g, "resnets.1", &x, width, norm(config), None)
    })
}

/// Adds softmax attention between all positions, in one head as wide as the map.
fn attention(g: &mut Graph, config: &VaeConfig, x: &Tensor) -> Result<Tensor, GraphError> {
    let (n, d) = (x.shape()[0], x.channels());
    let project = Linear { cols: d, bias: true, ..Linear::default() };
    let h = g.group_norm(x, "group_norm", norm(config), Activation::None)?;
    let h = h.reshaped([n, x.rows() / n, d]);
    let q = g.linear(&h, "to_q", project)?;
    let k = g.linear(&h, "to_k", project)?;
    let v = g.linear(&h, "to_v", project)?;
    let y = g.attention(&q, &k, Some(&v), Attend { heads: 1, phi: Phi::Softmax, causal: false })?;
    let y = g.linear(&y.reshaped(x.shape()), "to_out.0", Linear { residual: Some(x), ..project })?;
    g.tap("", &y);
    Ok(y)
}
