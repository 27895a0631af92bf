//! CLIP's text tower (docs/model.md, section 3): from token ids to the context of the UNet.

use crate::config::TextEncoderConfig;
use mobilediffusion_graph::{Attend, Embedding, Graph, GraphError, Linear, Tensor};
use mobilediffusion_kernels::Phi;

/// First part of the names of all weights.
pub(crate) const PREFIX: &str = "text_model";

/// Adds the text encoder to a graph and returns the context, `[n, l, hidden_size]`: the last hidden state after the
/// final norm.
///
/// `ids` is `[n, l]`. Attention is causal, with softmax. Padding is not masked, as in Stable Diffusion.
///
/// # Errors
/// [`GraphError`] if the configuration does not fit the ids; the error names the layer.
pub(crate) fn text_encoder(g: &mut Graph, config: &TextEncoderConfig, ids: &Tensor) -> Result<Tensor, GraphError> {
    g.scope(PREFIX, |g| {
        let tables = Embedding {
            vocab: config.vocab_size,
            positions: config.max_position_embeddings,
            channels: config.hidden_size,
        };
        let mut x = g.scope("embeddings", |g| {
            let x = g.embedding(ids, tables)?;
            g.tap("", &x);
            Ok::<_, GraphError>(x)
        })?;
        for layer in 0..config.num_hidden_layers {
            x = g.scope(&format!("encoder.layers.{layer}"), |g| encoder_layer(g, config, &x))?;
        }
        g.layer_norm(&x, "final_layer_norm", config.layer_norm_eps)
    })
}

/// Adds one transformer layer.
fn encoder_layer(g: &mut Graph, config: &TextEncoderConfig, x: &Tensor) -> Result<Tensor, GraphError> {
    let d = config.hidden_size;
    let project = Linear { cols: d, bias: true, ..Linear::default() };
    let n = g.layer_norm(x, "layer_norm1", config.layer_norm_eps)?;
    let h = g.scope("self_attn", |g| {
        let q = g.linear(&n, "q_proj", project)?;
        let k = g.linear(&n, "k_proj", project)?;
        let v = g.linear(&n, "v_proj", project)?;
        let attend = Attend { heads: config.num_attention_heads, phi: Phi::Softmax, causal: true };
        let y = g.attention(&q, &k, Some(&v), attend)?;
        g.linear(&y, "out_proj", Linear { residual: Some(x), ..project })
    })?;
    let n = g.layer_norm(&h, "layer_norm2", config.layer_norm_eps)?;
    g.scope("mlp", |g| {
        let inner = Linear { cols: config.intermediate_size, activation: config.hidden_act, ..project };
        let inner = g.linear(&n, "fc1", inner)?;
        g.linear(&inner, "fc2", Linear { residual: Some(&h), ..project })
    })
    .inspect(|y| g.tap("", y))
}
