//! Stacks of transformer layers on feature maps (docs/model.md, section 1.5).

use mobilediffusion_graph::{Attend, Glu, Graph, GraphError, GroupNorm, Linear, Tensor};
use mobilediffusion_kernels::{Activation, Phi};

/// Division of a width into attention heads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Heads {
    /// Width of every head; a layer has as many heads as fit.
    Wide(usize),
    /// This many heads.
    Many(usize),
}

/// Settings that all transformer layers of one UNet share.
#[derive(Debug)]
pub(super) struct Transformer<'a> {
    /// Text, `[n, keys, d]`.
    pub context: &'a Tensor,
    /// Group normalisation before a stack.
    pub norm: GroupNorm,
    /// Epsilon of the layer normalisations.
    pub layer_norm_eps: f32,
    /// Division of the width into heads.
    pub heads: Heads,
    /// Function that turns attention scores into weights.
    pub phi: Phi,
    /// Whether self-attention uses its keys as values too.
    pub shared: bool,
    /// Inner width of the feed-forward layers, as a multiple of the map's width.
    pub ff_mult: usize,
    /// Activation that the gates of the feed-forward layers pass through.
    pub gate: Activation,
}

impl Transformer<'_> {
    /// Adds a stack of `depth` layers on `x [n, h, w, d]`: a norm and a 1x1 convolution before the layers, a 1x1
    /// convolution after them, and a residual around all.
    pub(super) fn stack(
        &self,
        g: &mut Graph,
        x: &Tensor,
        depth: usize,
        attends_itself: bool,
    ) -> Result<Tensor, GraphError> {
        let (n, d) = (x.shape()[0], x.channels());
        let pointwise = Linear { cols: d, bias: true, pointwise: true, ..Linear::default() };
        let h = g.group_norm(x, "norm", self.norm, Activation::None)?;
        let h = g.linear(&h, "proj_in", pointwise)?;
        let mut h = h.reshaped([n, x.rows() / n, d]);
        for i in 0..depth {
            h = g.scope(&format!("transformer_blocks.{i}"), |g| self.layer(g, &h, attends_itself))?;
        }
        let h = h.reshaped(x.shape());
        let y = g.linear(&h, "proj_out", Linear { residual: Some(x), ..pointwise })?;
        g.tap("", &y);
        Ok(y)
    }

    /// Adds one layer: self-attention if `attends_itself`, cross-attention to the text, and the gated feed-forward
    /// layers.
    fn layer(&self, g: &mut Graph, h: &Tensor, attends_itself: bool) -> Result<Tensor, GraphError> {
        let d = h.channels();
        let mut h = h.clone();
        if attends_itself {
            let n = g.layer_norm(&h, "norm1", self.layer_norm_eps)?;
            h = g.scope("attn1", |g| self.attention(g, &n, &n, &h, self.shared))?;
        }
        let n = g.layer_norm(&h, "norm2", self.layer_norm_eps)?;
        h = g.scope("attn2", |g| self.attention(g, &n, self.context, &h, false))?;
        let n = g.layer_norm(&h, "norm3", self.layer_norm_eps)?;
        let gated = Glu { cols: self.ff_mult * d, pointwise: false, gate: self.gate };
        let inner = g.glu(&n, "ff.net.0.proj", gated)?;
        let out = Linear { cols: d, bias: true, residual: Some(&h), ..Linear::default() };
        let y = g.linear(&inner, "ff.net.2", out)?;
        g.tap("", &y);
        Ok(y)
    }

    /// Adds `h + to_out(attention(to_q n, to_k source, to_v source))`. With `shared`, one projection `to_kv` gives
    /// keys and values.
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
        let heads = match self.heads {
            Heads::Wide(width) => d / width,
            Heads::Many(heads) => heads,
        };
        let attend = Attend { heads, phi: self.phi, causal: false };
        let q = g.linear(n, "to_q", projection)?;
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
