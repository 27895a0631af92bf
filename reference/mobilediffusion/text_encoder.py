"""Text encoder, CLIP's text tower: token ids [n, l] -> last hidden state [n, l, hidden]."""

import torch
import torch.nn.functional as F
from torch import nn

from .config import TextConfig


class Embeddings(nn.Module):
    """Sum of token and position embeddings."""

    def __init__(self, c: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        self.position_embedding = nn.Embedding(c.max_position_embeddings, c.hidden_size)

    def forward(self, ids):
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class CausalSelfAttention(nn.Module):
    """Causal multi-head softmax attention: a token sees itself and earlier tokens. Padding is not masked."""

    def __init__(self, c: TextConfig):
        super().__init__()
        d, self.heads = c.hidden_size, c.num_attention_heads
        self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.v_proj, self.out_proj = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(o.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Feed-forward layer: two linear layers with quick_gelu(u) = u * sigmoid(1.702 u) between them."""

    def __init__(self, c: TextConfig):
        super().__init__()
        self.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x):
        u = self.fc1(x)
        return self.fc2(u * torch.sigmoid(1.702 * u))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, c: TextConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.self_attn = CausalSelfAttention(c)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = Mlp(c)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Layers(nn.Module):
    """Stack of layers, a separate module because the published names have it."""

    def __init__(self, c: TextConfig):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.num_hidden_layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class TextTransformer(nn.Module):
    """Text tower: embeddings, layers, final norm."""

    def __init__(self, c: TextConfig):
        super().__init__()
        self.embeddings = Embeddings(c)
        self.encoder = Layers(c)
        self.final_layer_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, ids):
        return self.final_layer_norm(self.encoder(self.embeddings(ids)))


class TextEncoder(nn.Module):
    """Text tower under the prefix `text_model.`, as in published CLIP files."""

    def __init__(self, config: TextConfig):
        super().__init__()
        if config.hidden_act != "quick_gelu":
            raise ValueError(f"hidden_act {config.hidden_act!r} is not supported")
        self.config = config
        self.text_model = TextTransformer(config)

    def forward(self, ids):
        return self.text_model(ids)
