"""Blocks of the UNet. Feature maps are [n, c, h, w], tokens [n, l, c], text [n, k, d]."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .config import UNetConfig


def zero_init(module: nn.Module) -> nn.Module:
    """Set a block's last layer to zero, so that the residual block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class TimeEmbedding(nn.Module):
    """Time embedding: training step [n] -> [n, time_embed_dim]."""

    def __init__(self, c: UNetConfig):
        super().__init__()
        self.half = c.time_proj_dim // 2
        self.linear_1 = nn.Linear(c.time_proj_dim, c.time_embed_dim)
        self.linear_2 = nn.Linear(c.time_embed_dim, c.time_embed_dim)

    def forward(self, timestep):
        i = torch.arange(self.half, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(-math.log(10000.0) * i / self.half)
        angles = timestep.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)  # cosines first
        return self.linear_2(F.silu(self.linear_1(waves.to(self.linear_1.weight.dtype))))


class ResidualBlock(nn.Module):
    """Vanilla residual block of the outermost level."""

    def __init__(self, cin: int, cout: int, c: UNetConfig):
        super().__init__()
        self.norm1 = nn.GroupNorm(c.norm_num_groups, cin, eps=c.norm_eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.time_emb_proj = nn.Linear(c.time_embed_dim, cout)
        self.norm2 = nn.GroupNorm(c.norm_num_groups, cout, eps=c.norm_eps)
        self.conv2 = zero_init(nn.Conv2d(cout, cout, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class SeparableUnit(nn.Module):
    """Depthwise 3x3 convolution, norm, and inverted bottleneck of two pointwise convolutions.

    The residual is added by the block, not here. With `glu` the bottleneck is gated, as in the feed-forward layers: the
    first half of `pwconv1` is the value, the second half the gate.
    """

    def __init__(self, cin: int, cout: int, c: UNetConfig):
        super().__init__()
        hidden = c.sep_expansion * (cout if c.sep_width_of == "out" else cin)
        self.gated = c.sep_kind == "glu"
        self.dwconv = nn.Conv2d(cin, cin, c.sep_kernel, padding=c.sep_kernel // 2, groups=cin)
        self.norm = nn.GroupNorm(c.norm_num_groups, cin, eps=c.norm_eps)
        self.pwconv1 = nn.Conv2d(cin, 2 * hidden if self.gated else hidden, 1)
        self.pwconv2 = nn.Conv2d(hidden, cout, 1)

    def forward(self, x, shift=0.0):
        """Apply the unit. `shift` [n, cin, 1, 1] is the projected time embedding, added before the norm."""
        h = self.pwconv1(self.norm(self.dwconv(x) + shift))
        if self.gated:
            value, gate = h.chunk(2, dim=1)
            return self.pwconv2(value * F.silu(gate))
        return self.pwconv2(F.silu(h))


class SeparableBlock(SeparableUnit):
    """ConvNeXt-like residual block of one unit (`sep_kind` convnext or glu)."""

    def __init__(self, cin: int, cout: int, c: UNetConfig):
        super().__init__(cin, cout, c)
        self.time_emb_proj = nn.Linear(c.time_embed_dim, cin)
        zero_init(self.pwconv2)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, emb):
        return self.conv_shortcut(x) + super().forward(x, self.time_emb_proj(F.silu(emb))[:, :, None, None])


class DoubleSeparableBlock(nn.Module):
    """Residual block of two units in a row, in place of the two convolutions of the vanilla block (`convnext2`).

    The time embedding enters the first unit.
    """

    def __init__(self, cin: int, cout: int, c: UNetConfig):
        super().__init__()
        self.units = nn.ModuleList([SeparableUnit(cin, cout, c), SeparableUnit(cout, cout, c)])
        self.time_emb_proj = nn.Linear(c.time_embed_dim, cin)
        zero_init(self.units[1].pwconv2)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, emb):
        h = self.units[0](x, self.time_emb_proj(F.silu(emb))[:, :, None, None])
        return self.conv_shortcut(x) + self.units[1](h)


def separable_block(cin: int, cout: int, c: UNetConfig) -> nn.Module:
    """Build a separable block of the kind that the configuration names."""
    return (DoubleSeparableBlock if c.sep_kind == "convnext2" else SeparableBlock)(cin, cout, c)


def attend(q, k, v, head_dim: int, phi: str):
    """Compute attention: q [n, l, d], k and v [n, keys, d] -> [n, l, d]. phi turns scores into weights."""
    split = lambda x: x.unflatten(-1, (-1, head_dim)).transpose(1, 2)  # [n, heads, l, head_dim]
    q, k, v = split(q), split(k), split(v)
    if phi == "softmax":
        o = F.scaled_dot_product_attention(q, k, v)
    else:
        # relu is positively homogeneous, so 1/keys and 1/sqrt(head_dim) become one factor.
        scale = head_dim**-0.5 / k.shape[2]
        o = F.relu(q @ k.transpose(-1, -2) * scale) @ v
    return o.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention. With `share_kv_self_attention` one projection `to_kv` gives both keys and values."""

    def __init__(self, d: int, c: UNetConfig):
        super().__init__()
        self.head_dim, self.phi, self.shared = c.head_dim(d), c.attention_phi, c.share_kv_self_attention
        self.to_q = nn.Linear(d, d, bias=False)
        if self.shared:
            self.to_kv = nn.Linear(d, d, bias=False)
        else:
            self.to_k = nn.Linear(d, d, bias=False)
            self.to_v = nn.Linear(d, d, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(d, d)])

    def forward(self, x):
        k, v = [self.to_kv(x)] * 2 if self.shared else (self.to_k(x), self.to_v(x))
        return self.to_out[0](attend(self.to_q(x), k, v, self.head_dim, self.phi))


class CrossAttention(nn.Module):
    """Cross-attention from the picture's tokens to the text's."""

    def __init__(self, d: int, c: UNetConfig):
        super().__init__()
        self.head_dim, self.phi = c.head_dim(d), c.attention_phi
        self.to_q = nn.Linear(d, d, bias=False)
        self.to_k = nn.Linear(c.cross_attention_dim, d, bias=False)
        self.to_v = nn.Linear(c.cross_attention_dim, d, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(d, d)])

    def forward(self, x, text):
        return self.to_out[0](attend(self.to_q(x), self.to_k(text), self.to_v(text), self.head_dim, self.phi))


class Glu(nn.Module):
    """Gated projection d -> 2 x inner. The first half is the value, the second the gate."""

    def __init__(self, d: int, inner: int, gate):
        super().__init__()
        self.proj, self.gate = nn.Linear(d, 2 * inner), gate

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * self.gate(gate)


class FeedForward(nn.Module):
    """Gated feed-forward layer. Index 1 of `net` is diffusers' dropout, kept for the names."""

    def __init__(self, d: int, c: UNetConfig):
        super().__init__()
        inner, gate = c.ff_mult * d, {"swiglu": F.silu, "geglu": F.gelu}[c.ff_activation]
        self.net = nn.ModuleList([Glu(d, inner, gate), nn.Identity(), nn.Linear(inner, d)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Transformer layer: self-attention if the level has it, cross-attention, feed-forward."""

    def __init__(self, d: int, self_attention: bool, c: UNetConfig):
        super().__init__()
        if self_attention:
            self.norm1 = nn.LayerNorm(d, eps=c.layer_norm_eps)
            self.attn1 = SelfAttention(d, c)
        self.norm2 = nn.LayerNorm(d, eps=c.layer_norm_eps)
        self.attn2 = CrossAttention(d, c)
        self.norm3 = nn.LayerNorm(d, eps=c.layer_norm_eps)
        self.ff = FeedForward(d, c)

    def forward(self, x, text):
        if hasattr(self, "attn1"):
            x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class TransformerStack(nn.Module):
    """Transformer stack: feature map -> tokens -> `depth` layers -> feature map, with a residual around the whole."""

    def __init__(self, d: int, depth: int, self_attention: bool, c: UNetConfig):
        super().__init__()
        self.norm = nn.GroupNorm(c.norm_num_groups, d, eps=c.transformer_norm_eps)
        self.proj_in = nn.Conv2d(d, d, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(d, self_attention, c) for _ in range(depth))
        self.proj_out = zero_init(nn.Conv2d(d, d, 1))

    def forward(self, x, text):
        height, width = x.shape[2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # [n, h*w, d], row-major
        for block in self.transformer_blocks:
            tokens = block(tokens, text)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """Downsampler: a 3x3 convolution with stride 2 and padding 1 halves height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Upsample(nn.Module):
    """Upsampler: doubles height and width by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SeparableDownsample(nn.Module):
    """Separable downsampler: a depthwise 3x3 convolution with stride 2, then a 1x1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))
