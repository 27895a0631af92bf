//! Stacks of transformer layers on the pixels of a map (specification, section 1.5).

use crate::blocks::Norm;
use mobilediffusion_graph::{Attend, Glu, Graph, GraphError, Linear, Tensor};
use mobilediffusion_kernels::{Activation, Phi};

/// Into how many heads a width is divided.
#[derive(Clone, Copy, Debug)]
pub(super) enum Heads {
    /// As many as there are heads of this width.
    Wide(usize),
    /// This many.
    Many(usize),
}

/// What every transformer layer of one UNet has in common.
#[derive(Debug)]
pub(super) struct Transformer<'a> {
    /// The text, `[n, keys, d]`.
    pub context: &'a Tensor,
    /// Of the group norm in front of a stack.
    pub norm: Norm,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f32,
    pub heads: Heads,
    pub phi: Phi,
    /// Whether self-attention uses its keys as values too.
    pub shared: bool,
    /// Inner width of the feed-forward, in widths of the map.
    pub ff_mult: usize,
    /// What the feed-forward's gates go through.
    pub gate: Activation,
}

impl Transformer<'_> {
    /// A stack of `depth` layers on `x [n, h, w, d]`, between a norm and two 1x1 convolutions, added to `x`.
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

    /// Self-attention where there is some, cross-attention to the text, and the gated feed-forward.
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
        let heads = match self.heads {
            Heads::Wide(width) => d / width,
            Heads::Many(heads) => heads,
        };
        let attend = Attend { heads, phi: self.phi, causal: false };
        let y = if shared {
            let (q, kv) = g.shared_kv_projection(n, ("to_q", "to_kv"), d)?;
            g.attention(&q, &kv, None, attend)?
        } else {
            let q = g.linear(n, "to_q", projection)?;
            let k = g.linear(source, "to_k", projection)?;
            let v = g.linear(source, "to_v", projection)?;
            g.attention(&q, &k, Some(&v), attend)?
        };
        g.linear(&y, "to_out.0", Linear { bias: true, residual: Some(h), ..projection })
    }
}
