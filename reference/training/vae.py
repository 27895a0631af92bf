"""Stage `vae`: encoder and light decoder together."""

import math

import torch
import torch.nn.functional as F

from mobilediffusion.config import DecoderConfig, EncoderConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.vae import Encoder, sample_latent

from .common import Pictures, Run, follow, averaged, load_checkpoint, set_rate

ENCODER = EncoderConfig(block_out_channels=[24, 48, 80, 96], layers_per_block=1, norm_num_groups=8)
DECODER = DecoderConfig(block_out_channels=[24, 48, 80, 96], layers_per_up_block=[2, 2, 1, 1], norm_num_groups=8)
BATCH, EMA = 16, 0.998


def gradients(x):
    """Horizontal and vertical differences of pictures [n, c, h, w]."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output, target):
    """L1 for colour, L2 for large errors, L1 of the gradients for edges (in place of a perceptual network)."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(output), gradients(target)))
    return F.l1_loss(output, target) + F.mse_loss(output, target) + edges


def kl_divergence(mean, logvar):
    """KL to the standard normal, mean over all latent values."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


@torch.no_grad()
def psnr(encoder, decoder, pictures) -> float:
    """dB over all pictures, from the mean latent, colours in 0..1."""
    error = [((decoder(encoder(p)[0]).clamp(-1, 1) - p) / 2) ** 2 for p in pictures.split(64)]
    return -10 * math.log10(torch.cat(error).mean().item())


def load(folder, device):
    """Averaged encoder and decoder of a finished `vae` stage; the decoder's config holds the scaling factor."""
    saved = load_checkpoint(folder)
    encoder, decoder = Encoder(ENCODER), LightDecoder(DecoderConfig.from_dict(saved["decoder_config"]))
    encoder.load_state_dict(saved["encoder_ema"])
    decoder.load_state_dict(saved["decoder_ema"])
    return encoder.to(device).eval(), decoder.to(device).eval()


@torch.no_grad()
def scaled_latents(encoder, decoder, pictures):
    """Mean latents of all pictures [n, 8, 8, 8], unit variance."""
    latents = torch.cat([encoder(p)[0] for p in pictures.split(64)])
    return latents * decoder.config.scaling_factor


def train(options) -> None:
    device = options.device
    data = Pictures(options.data, device)
    last = {"memory_format": torch.channels_last}
    encoder, decoder = Encoder(ENCODER).to(device, **last), LightDecoder(DECODER).to(device, **last)
    encoder_ema, decoder_ema = averaged(encoder), averaged(decoder)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=3e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    state = dict(encoder=encoder, decoder=decoder, encoder_ema=encoder_ema, decoder_ema=decoder_ema, optimizer=optimizer)
    run = Run(options.out / "vae", options.minutes, options.steps, ["loss", "kl", "rate"])
    run.resume(**state)
    pictures = data.pictures.contiguous(**last)

    def save():
        std = torch.cat([encoder_ema(p)[0] for p in pictures.split(64)]).std().item()
        decoder.config.scaling_factor = round(1 / std, 6)
        run.save(**state, decoder_config=decoder.config.to_dict(), encoder_config=encoder.config.to_dict())
        print(f"psnr {psnr(encoder_ema, decoder_ema, pictures):.2f} dB, scaling factor {decoder.config.scaling_factor}", flush=True)

    while run.progress < 1:
        set_rate(optimizer, run.cosine(3e-3, 3e-5))
        x = pictures[torch.randint(len(data), (BATCH,))]
        x = torch.where((torch.rand(BATCH, 1, 1, 1) < 0.5).to(device), x, x.flip(3)).contiguous(**last)
        with torch.autocast(device, torch.bfloat16, enabled=options.bf16):
            mean, logvar = encoder(x)
        mean, logvar = mean.float(), logvar.float()
        with torch.autocast(device, torch.bfloat16, enabled=options.bf16):
            output = decoder(sample_latent(mean, logvar))
        kl = kl_divergence(mean, logvar)
        loss = reconstruction_loss(output.float(), x) + 3e-4 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*encoder.parameters(), *decoder.parameters()], 1.0)
        optimizer.step()
        decay = min(EMA, (run.step + 1) / (run.step + 10))
        follow(encoder_ema, encoder, decay)
        follow(decoder_ema, decoder, decay)
        run.log(loss=loss, kl=kl, rate=run.cosine(3e-3, 3e-5))
        if run.step % 500 == 0:
            save()
    save()
