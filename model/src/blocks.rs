//! Graph blocks that the UNets and the VAEs share.

use mobilediffusion_graph::{Conv, Graph, GraphError, GroupNorm, Linear, Tensor};
use mobilediffusion_kernels::Activation;

/// Adds the residual block of Stable Diffusion (docs/model.md, section 1.3):
/// `y = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))`.
///
/// `x` is `[n, h, w, c]`, the result `[n, h, w, channels]`; the shortcut is a 1x1 convolution if the number of
/// channels changes. `time` is `silu` of the time embedding, `[n, d]`; the VAEs pass none.
pub(crate) fn residual_block(
    g: &mut Graph,
    name: &str,
    x: &Tensor,
    channels: usize,
    norm: GroupNorm,
    time: Option<&Tensor>,
) -> Result<Tensor, GraphError> {
    g.scope(name, |g| {
        let shift = time.map(|time| time_projection(g, time, channels)).transpose()?;
        // The shortcut comes first, so that `x` need not be kept beyond the norm.
        let residual = shortcut(g, x, channels)?;
        let h = g.group_norm(x, "norm1", norm, Activation::Silu)?;
        let h = g.conv2d(&h, "conv1", Conv { shift: shift.as_ref(), ..Conv::to(channels) })?;
        let h = g.group_norm(&h, "norm2", norm, Activation::Silu)?;
        let y = g.conv2d(&h, "conv2", Conv { residual: Some(&residual), ..Conv::to(channels) })?;
        g.tap("", &y);
        Ok(y)
    })
}

/// Projects the time embedding `[n, d]` to one value per image and channel, `[n, channels]`.
pub(crate) fn time_projection(g: &mut Graph, time: &Tensor, channels: usize) -> Result<Tensor, GraphError> {
    g.linear(time, "time_emb_proj", Linear { cols: channels, bias: true, ..Linear::default() })
}

/// Returns the shortcut of a residual block: `x` itself, or a 1x1 convolution of it where the number of channels
/// changes.
pub(crate) fn shortcut(g: &mut Graph, x: &Tensor, channels: usize) -> Result<Tensor, GraphError> {
    if x.channels() == channels {
        return Ok(x.clone());
    }
    let layer = Linear { cols: channels, bias: true, pointwise: true, ..Linear::default() };
    g.linear(x, "conv_shortcut", layer)
}

/// Adds the 3x3 convolution of a downsampler or upsampler, named `name.conv`.
pub(crate) fn resample(g: &mut Graph, name: &str, x: &Tensor, layer: Conv<'_>) -> Result<Tensor, GraphError> {
    g.scope(name, |g| {
        let y = g.conv2d(x, "conv", layer)?;
        g.tap("conv", &y);
        Ok(y)
    })
}
