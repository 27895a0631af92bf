//! The UNets: what noise is in a latent, given a timestep and a text.

mod mobile_diffusion;
mod stable_diffusion;
mod transformer;

use crate::config::UnetConfig;
use mobilediffusion_graph::{Conv, Graph, GraphError, Linear, Tensor};
use mobilediffusion_kernels::Activation;
use transformer::Transformer;

/// Adds the UNet to a graph. `latent [n, h, w, in_channels]` with `h` and `w` multiples of
/// [`UnetConfig::latent_multiple`], `timestep [n]`, `context [n, keys, cross_attention_dim]`; gives the prediction
/// `[n, h, w, out_channels]`.
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
    match config {
        UnetConfig::MobileDiffusion(config) => mobile_diffusion::unet(g, config, latent, timestep, context),
        UnetConfig::StableDiffusion(config) => stable_diffusion::unet(g, config, latent, timestep, context),
    }
}

/// `silu` of the time embedding, as every block wants it: sinusoids, then two layers.
fn time_embedding(g: &mut Graph, timestep: &Tensor, (waves, width): (usize, usize)) -> Result<Tensor, GraphError> {
    g.scope("time_embedding", |g| {
        let e = g.timestep_embedding(timestep, waves)?;
        let layer = Linear { cols: width, bias: true, activation: Activation::Silu, ..Linear::default() };
        let e = g.linear(&e, "linear_1", layer)?;
        let e = g.linear(&e, "linear_2", layer)?;
        g.tap("", &e);
        Ok(e)
    })
}

/// The convolution at the beginning.
fn conv_in(g: &mut Graph, latent: &Tensor, width: usize) -> Result<Tensor, GraphError> {
    let x = g.conv2d(latent, "conv_in", Conv::to(width))?;
    g.tap("conv_in", &x);
    Ok(x)
}

/// Norm and convolution at the end.
fn conv_out(g: &mut Graph, x: &Tensor, norm: crate::blocks::Norm, channels: usize) -> Result<Tensor, GraphError> {
    let x = g.group_norm(x, "conv_norm_out", norm, Activation::Silu)?;
    let y = g.conv2d(&x, "conv_out", Conv::to(channels))?;
    g.tap("conv_out", &y);
    Ok(y)
}
