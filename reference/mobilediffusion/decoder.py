"""Light decoder from latent to picture, without attention and without a middle block."""

import torch.nn.functional as F
from torch import nn

from .blocks import Upsample
from .config import DecoderConfig


class VaeResidualBlock(nn.Module):
    """Residual block without a time embedding, [n, cin, h, w] -> [n, cout, h, w]."""

    def __init__(self, cin: int, cout: int, groups: int, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, cin, eps=eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, cout, eps=eps)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class UpBlock(nn.Module):
    """Level of `layers` residual blocks, then upsampling in all but the last level."""

    def __init__(self, cin: int, cout: int, layers: int, upsample: bool, c: DecoderConfig):
        super().__init__()
        cins = [cin] + [cout] * (layers - 1)
        self.resnets = nn.ModuleList(VaeResidualBlock(i, cout, c.norm_num_groups, c.norm_eps) for i in cins)
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(cout)])

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class DecoderTrunk(nn.Module):
    """Decoder after `post_quant_conv`."""

    def __init__(self, c: DecoderConfig):
        super().__init__()
        widths = list(reversed(c.block_out_channels))  # from the latent to the picture
        self.conv_in = nn.Conv2d(c.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(i - 1, 0)], widths[i], c.layers_per_up_block[i], i + 1 < len(widths), c)
            for i in range(len(widths))
        )
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[-1], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(widths[-1], c.out_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class LightDecoder(nn.Module):
    """Decode an unscaled latent [n, 8, h, w] to a picture [n, 3, 8h, 8w], about -1 to 1 and not clamped."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = DecoderTrunk(config)

    def forward(self, z):
        return self.decoder(self.post_quant_conv(z))

    def decode(self, latent):
        """Decode a scaled latent, as the UNet uses it, to a picture in 0..1."""
        picture = self(latent / self.config.scaling_factor)
        return (picture.clamp(-1, 1) + 1) / 2
