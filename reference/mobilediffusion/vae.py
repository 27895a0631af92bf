"""Full VAE, with the architecture and the names of Stable Diffusion's AutoencoderKL."""

import torch
import torch.nn.functional as F
from torch import nn

from .config import VaeConfig
from .decoder import UpBlock, VaeResidualBlock


class MidAttention(nn.Module):
    """Single-head softmax attention over all positions, [n, d, h, w] -> [n, d, h, w]."""

    def __init__(self, d: int, groups: int, eps: float):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, d, eps=eps)
        self.to_q, self.to_k, self.to_v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.to_out = nn.ModuleList([nn.Linear(d, d)])

    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [n, h*w, d]
        o = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](o).transpose(1, 2).unflatten(2, x.shape[2:])


class PaddedDownsample(nn.Module):
    """Downsampler: a convolution with stride 2, padded only on the right and below."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DownBlock(nn.Module):
    """Level of `layers` residual blocks, then downsampling in all but the last level."""

    def __init__(self, cin: int, cout: int, downsample: bool, c: VaeConfig):
        super().__init__()
        cins = [cin] + [cout] * (c.layers_per_block - 1)
        self.resnets = nn.ModuleList(VaeResidualBlock(i, cout, c.norm_num_groups, c.norm_eps) for i in cins)
        if downsample:
            self.downsamplers = nn.ModuleList([PaddedDownsample(cout)])

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return self.downsamplers[0](x) if hasattr(self, "downsamplers") else x


class MidBlock(nn.Module):
    """Middle block: residual block, attention, residual block."""

    def __init__(self, d: int, c: VaeConfig):
        super().__init__()
        block = lambda: VaeResidualBlock(d, d, c.norm_num_groups, c.norm_eps)
        self.resnets = nn.ModuleList([block(), block()])
        self.attentions = nn.ModuleList([MidAttention(d, c.norm_num_groups, c.norm_eps)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class EncoderTrunk(nn.Module):
    """Encoder before `quant_conv`."""

    def __init__(self, c: VaeConfig):
        super().__init__()
        widths = c.block_out_channels
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(i - 1, 0)], widths[i], i + 1 < len(widths), c) for i in range(len(widths))
        )
        self.mid_block = MidBlock(widths[-1], c)
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[-1], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(widths[-1], 2 * c.latent_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class FullDecoderTrunk(nn.Module):
    """Decoder after `post_quant_conv`: that of the light decoder, with a middle block and one more layer per level."""

    def __init__(self, c: VaeConfig):
        super().__init__()
        widths = list(reversed(c.block_out_channels))  # from the latent to the picture
        self.conv_in = nn.Conv2d(c.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], c)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(i - 1, 0)], widths[i], c.layers_per_block + 1, i + 1 < len(widths), c)
            for i in range(len(widths))
        )
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[-1], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(widths[-1], c.out_channels, 3, padding=1)

    def forward(self, x):
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Vae(nn.Module):
    """VAE between pictures [n, 3, 8h, 8w] in -1..1 and unscaled latents [n, 8, h, w]."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.config = config
        self.encoder = EncoderTrunk(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = FullDecoderTrunk(config)

    def encode(self, picture):
        """Encode to mean and log variance of the unscaled latent, [n, 8, h, w] each."""
        mean, logvar = self.quant_conv(self.encoder(picture)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def forward(self, z):
        """Decode an unscaled latent to a picture, about -1 to 1 and not clamped."""
        return self.decoder(self.post_quant_conv(z))

    def decode(self, latent):
        """Decode a scaled latent, as the UNet uses it, to a picture in 0..1."""
        return (self(latent / self.config.scaling_factor).clamp(-1, 1) + 1) / 2


def sample_latent(mean, logvar):
    """Draw from the encoder's Gaussian by reparameterisation."""
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
