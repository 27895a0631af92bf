//! UNets: networks that predict the noise in a latent, its v or the clean latent, from a timestep and a text
//! (docs/model.md, sections 1 and 4).

mod mobile_diffusion;
mod stable_diffusion;
mod transformer;

use crate::blocks::resample;
use crate::config::UnetConfig;
use mobilediffusion_graph::{Conv, Graph, GraphError, GroupNorm, Linear, Tensor};
use mobilediffusion_kernels::Activation;
use transformer::Transformer;

/// Adds the UNet to a graph and returns its prediction, `[n, h, w, out_channels]`.
///
/// `latent` is `[n, h, w, in_channels]` with `h` and `w` multiples of [`UnetConfig::latent_multiple`], `timestep` is
/// `[n]`, and `context` is `[n, keys, cross_attention_dim]`.
///
/// # Errors
/// [`GraphError`] if the configuration does not fit the inputs; the error names the block.
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

/// Parts of a UNet between its first and its last convolution, which differ from one kind of UNet to the other.
trait Net {
    /// Adds the levels before the middle. Pushes the outputs that the way up concatenates onto `skips`.
    fn down(&self, g: &mut Graph, x: Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor, GraphError>;

    /// Adds the innermost level.
    fn middle(&self, g: &mut Graph, x: Tensor) -> Result<Tensor, GraphError>;

    /// Returns the number of layers and the width of every level after the middle, the outermost last.
    fn levels_up(&self) -> Vec<(usize, usize)>;

    /// Adds a layer of a level after the middle. `joined` is the previous output concatenated with a skip.
    fn layer_up(&self, g: &mut Graph, level: usize, layer: usize, joined: &Tensor) -> Result<Tensor, GraphError>;
}

/// Adds a whole UNet: down, middle, up. `first` is the width of the first convolution, `last` the number of channels
/// of the prediction.
fn walk(
    g: &mut Graph,
    net: &impl Net,
    latent: &Tensor,
    (first, last): (usize, usize),
    norm: GroupNorm,
) -> Result<Tensor, GraphError> {
    let x = conv_in(g, latent, first)?;
    let mut skips = vec![x.clone()];
    let x = g.scope("down_blocks", |g| net.down(g, x, &mut skips))?;
    let x = g.scope("mid_block", |g| net.middle(g, x))?;
    let x = g.scope("up_blocks", |g| up(g, net, x, skips))?;
    conv_out(g, &x, norm, last)
}

/// Adds the levels on the way up; every layer consumes a skip, the latest first.
fn up(g: &mut Graph, net: &impl Net, mut x: Tensor, mut skips: Vec<Tensor>) -> Result<Tensor, GraphError> {
    let levels = net.levels_up();
    for (level, &(layers, width)) in levels.iter().enumerate() {
        x = g.scope(&level.to_string(), |g| {
            for layer in 0..layers {
                let skip = skips.pop().expect("a validated configuration has as many skips as layers up");
                let joined = g.scope(&format!("resnets.{layer}"), |g| g.concat(&x, &skip))?;
                x = net.layer_up(g, level, layer, &joined)?;
            }
            match level + 1 == levels.len() {
                true => Ok(x),
                false => resample(g, "upsamplers.0", &x, Conv { upsample: true, ..Conv::to(width) }),
            }
        })?;
    }
    Ok(x)
}

/// Adds `silu` of the time embedding, the form that every block reads: sinusoids, then two linear layers.
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

/// Adds the first convolution.
fn conv_in(g: &mut Graph, latent: &Tensor, width: usize) -> Result<Tensor, GraphError> {
    let x = g.conv2d(latent, "conv_in", Conv::to(width))?;
    g.tap("conv_in", &x);
    Ok(x)
}

/// Adds the last norm and convolution. The result is f32: at step 999 the sampler's division by `a` multiplies a
/// rounding error by 14.6 (docs/model.md, section 4.2).
fn conv_out(g: &mut Graph, x: &Tensor, norm: GroupNorm, channels: usize) -> Result<Tensor, GraphError> {
    let x = g.group_norm(x, "conv_norm_out", norm, Activation::Silu)?;
    let y = g.conv2d(&x, "conv_out", Conv { f32_output: true, ..Conv::to(channels) })?;
    g.tap("conv_out", &y);
    Ok(y)
}
