"""Stable Diffusion 1.5's UNet, the paper's baseline, with residual blocks on all of its four levels."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import Downsample, ResidualBlock, TimeEmbedding
from .config import StableDiffusionConfig
from .unet import Level


class StableDiffusionUNet(nn.Module):
    """UNet: noisy latent [n, 4, h, w], training step [n], text [n, k, d] -> predicted noise [n, 4, h, w].

    h and w must be multiples of 8, so that the skips match after three halvings.
    """

    def __init__(self, config: StableDiffusionConfig):
        super().__init__()
        self.config = c = config
        widths, layers = c.block_out_channels, c.layers_per_block
        last = len(widths) - 1
        depths = [[int(kind.startswith("CrossAttn"))] for kind in c.down_block_types]
        level = lambda i, cins, **sampler: Level(
            ResidualBlock, cins, widths[i], depths[i] * len(cins), [True] * len(cins), c, **sampler
        )

        self.time_embedding = TimeEmbedding(c)
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.down_blocks, skips = nn.ModuleList(), [widths[0]]
        for i, width in enumerate(widths):
            cins = [widths[max(i - 1, 0)]] + [width] * (layers - 1)
            self.down_blocks.append(level(i, cins, downsample=Downsample if i < last else None))
            skips += [width] * (layers if i == last else layers + 1)
        # The middle: two residual blocks with one transformer between them.
        self.mid_block = Level(ResidualBlock, [widths[-1]] * 2, widths[-1], [1], [True], c)
        self.up_blocks, x = nn.ModuleList(), widths[-1]
        for i in reversed(range(len(widths))):
            hidden = [x] + [widths[i]] * layers
            self.up_blocks.append(level(i, [h + skips.pop() for h in hidden], upsample=i > 0))
            x = widths[i]
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[0], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], c.out_channels, 3, padding=1)

    def forward(self, latent, timestep, text):
        emb = self.time_embedding(timestep)
        x = self.conv_in(latent)
        skips = [x]
        for level in self.down_blocks:
            for j in range(len(level.resnets)):
                x = level.layer(j, x, emb, text)
                skips.append(x)
            if hasattr(level, "downsamplers"):
                x = level.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block.layer(0, x, emb, text)
        x = self.mid_block.resnets[1](x, emb)
        for level in self.up_blocks:
            for j in range(len(level.resnets)):
                x = level.layer(j, torch.cat([x, skips.pop()], dim=1), emb, text)
            if hasattr(level, "upsamplers"):
                x = level.upsamplers[0](x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
