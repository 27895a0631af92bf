"""UNet of MobileDiffusion: two levels down, one deep middle module, two levels up."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import (
    Downsample, ResidualBlock, SeparableDownsample, TimeEmbedding, TransformerStack, Upsample, separable_block, zero_init,
)
from .config import UNetConfig


class Level(nn.Module):
    """Level: residual blocks, each followed by a transformer stack if its depth is above 0, then at most one sampler.

    Only a container: `UNet.forward` runs its modules, because the skips connect levels. `downsample` is the module that
    halves the size, or None.
    """

    def __init__(self, block, cins, cout, depths, self_attention, c, downsample=None, upsample=False):
        super().__init__()
        self.resnets = nn.ModuleList(block(cin, cout, c) for cin in cins)
        if any(depths):
            self.attentions = nn.ModuleList(TransformerStack(cout, d, sa, c) for d, sa in zip(depths, self_attention))
        if downsample:
            self.downsamplers = nn.ModuleList([downsample(cout)])
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(cout)])

    def layer(self, j: int, x, emb, text):
        x = self.resnets[j](x, emb)
        return self.attentions[j](x, text) if hasattr(self, "attentions") else x


class UNet(nn.Module):
    """UNet: noisy latent [n, 8, h, w], training step [n], text [n, k, d] -> prediction [n, 8, h, w].

    h and w must be multiples of 4, so that the skips match after two halvings.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = c = config
        c0, c1, c2 = c.block_out_channels
        down0, down1 = c.layers_down
        up0, up1 = c.layers_up
        down1_sampler = SeparableDownsample if "down1" in c.sep_samplers else Downsample

        self.time_embedding = TimeEmbedding(c)
        self.conv_in = nn.Conv2d(c.in_channels, c0, 3, padding=1)
        self.down_blocks = nn.ModuleList([
            Level(ResidualBlock, [c0] * down0, c0, [c.transformer_depth_down[0]] * down0, [False] * down0, c,
                  downsample=Downsample),
            Level(separable_block, [c0] + [c1] * (down1 - 1), c1, [c.transformer_depth_down[1]] * down1,
                  [c.self_attention["down1"]] * down1, c, downsample=down1_sampler),
        ])
        self.mid_block = Level(separable_block, [c1] + [c2] * (c.layers_mid - 1), c2, c.transformer_depth_mid,
                               c.mid_self_attention(), c, upsample=True)
        # Channels of the skips in the order in which the up path takes them: last in, first out.
        skips0, skips1 = [c1] * down1 + [c0], [c0] * down0 + [c0]
        hidden0, hidden1 = [c2] + [c1] * (up0 - 1), [c1] + [c0] * (up1 - 1)
        self.up_blocks = nn.ModuleList([
            Level(separable_block, [h + s for h, s in zip(hidden0, skips0)], c1, [c.transformer_depth_up[0]] * up0,
                  [c.self_attention["up0"]] * up0, c, upsample=True),
            Level(ResidualBlock, [h + s for h, s in zip(hidden1, skips1)], c0, [c.transformer_depth_up[1]] * up1,
                  [False] * up1, c),
        ])
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, c0, eps=c.norm_eps)
        self.conv_out = zero_init(nn.Conv2d(c0, c.out_channels, 3, padding=1))

    def set_attention_phi(self, phi: str) -> None:
        """Switch between softmax and relu attention; the weights have the same shapes."""
        self.config.attention_phi = phi
        for module in self.modules():
            if hasattr(module, "phi"):
                module.phi = phi

    def forward(self, latent, timestep, text):
        if latent.shape[2] % 4 or latent.shape[3] % 4:
            raise ValueError(f"latent height and width must be multiples of 4, not {tuple(latent.shape[2:])}")
        emb = self.time_embedding(timestep)
        x = self.conv_in(latent)
        skips = [x]
        for i, level in enumerate(self.down_blocks):
            for j in range(len(level.resnets)):
                x = level.layer(j, x, emb, text)
                skips.append(x)
            x = level.downsamplers[0](x)
            if i == 0:  # the last downsampler leads into the middle and leaves no skip
                skips.append(x)
        for j in range(len(self.mid_block.resnets)):
            x = self.mid_block.layer(j, x, emb, text)
        x = self.mid_block.upsamplers[0](x)
        for level in self.up_blocks:
            for j in range(len(level.resnets)):
                x = level.layer(j, torch.cat([x, skips.pop()], dim=1), emb, text)
            if hasattr(level, "upsamplers"):
                x = level.upsamplers[0](x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
