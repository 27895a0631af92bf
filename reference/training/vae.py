"""Stages `vae`, for encoder and full decoder, and `decoder`, for the light decoder of that encoder."""

import math

import torch
import torch.nn.functional as F

from mobilediffusion.config import DecoderConfig, VaeConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.pipeline import load_part
from mobilediffusion.vae import Vae, sample_latent

from .adversarial import PatchGan
from .common import HELD_CONCEPT, HELD_STYLE, Pictures, Run, averaged, follow, frozen, load_checkpoint, precision, set_rate

KL_WEIGHT = 3e-4
WARM_FROZEN = 0.25  # share of the run in which a warm-started decoder is frozen while its encoder trains


def gradients(x):
    """Return horizontal and vertical differences of pictures [n, c, h, w]."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output, target):
    """Return the reconstruction loss.

    L1 for colour, L2 for large errors, and L1 of the gradients for edges instead of a perceptual network.
    """
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(output), gradients(target)))
    return F.l1_loss(output, target) + F.mse_loss(output, target) + edges


def kl_divergence(mean, logvar):
    """Return the KL divergence to the standard normal distribution, averaged over all latent values."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


@torch.no_grad()
def psnr(vae, decoder, pictures: Pictures) -> float:
    """Return the PSNR in dB over all pictures decoded from their mean latents, with colours in 0..1."""
    total = sum((((decoder(vae.encode(p)[0]).clamp(-1, 1) - p) / 2) ** 2).sum().item() for p in pictures.batches())
    return -10 * math.log10(total / pictures.pixels.numel())


def load(folder, device) -> Vae:
    """Load the averaged VAE of a finished stage `vae`. Its config holds the scaling factor."""
    saved = load_checkpoint(folder)
    vae = Vae(VaeConfig.from_dict(saved["vae_config"]))
    vae.load_state_dict(saved["vae_ema"])
    return frozen(vae.to(device))


def load_light(folder, device) -> LightDecoder:
    """Load the averaged light decoder of the stage `decoder`."""
    saved = load_checkpoint(folder)
    decoder = LightDecoder(DecoderConfig.from_dict(saved["decoder_config"]))
    decoder.load_state_dict(saved["decoder_ema"])
    return frozen(decoder.to(device))


@torch.no_grad()
def scaled_latents(vae: Vae, pictures: Pictures):
    """Return the mean latents of all pictures [n, 8, h, w], scaled to unit variance."""
    return torch.cat([vae.encode(p)[0] for p in pictures.batches()]) * vae.config.scaling_factor


def grow(vae: Vae, light: LightDecoder) -> None:
    """Initialise the full decoder from a light one of the same widths. Its additional blocks start as the identity."""
    own, given = vae.state_dict(), light.state_dict()
    if unusable := {k for k in given if k not in own or own[k].shape != given[k].shape}:
        raise ValueError(f"the light decoder does not fit into the full one at {sorted(unusable)[0]}")
    vae.load_state_dict(own | given)
    for name, module in vae.decoder.named_modules():
        if name.endswith(("conv2", "to_out.0")) and f"decoder.{name}.weight" not in given:
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def new_vae(options) -> Vae:
    vae = Vae(options.plan.vae)
    if options.warm:
        grow(vae, load_part(LightDecoder, DecoderConfig, options.warm / "decoder"))
    return vae.to(options.device)


def mirrored(x):
    """Mirror a random half of the pictures [n, 3, h, w]."""
    return torch.where((torch.rand(len(x), 1, 1, 1) < 0.5).to(x.device), x, x.flip(3))


def set_scaling_factor(config, vae_ema: Vae, data: Pictures) -> None:
    """Set the scaling factor to 1 / standard deviation of the mean latents of the training pictures."""
    with torch.no_grad():
        latents = torch.cat([vae_ema.encode(p)[0] for p in data.batches()])
    config.scaling_factor = round(1 / latents.std().item(), 6)


def train(options) -> None:
    device, stage = options.device, options.stage
    data, held = Pictures(options.data, device), Pictures(options.data, device, (HELD_STYLE, HELD_CONCEPT))
    vae = new_vae(options)
    vae_ema = averaged(vae)
    gan = PatchGan(options.plan.adversarial, device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=stage.rate[0], betas=(0.9, 0.99), weight_decay=1e-4)
    state = dict(vae=vae, vae_ema=vae_ema, optimizer=optimizer, **gan.state())
    run = Run(options.out / "vae", stage.minutes, stage.steps, ["loss", "kl", "adversarial", "rate"])
    run.resume(**state)

    def save():
        set_scaling_factor(vae.config, vae_ema, data)
        run.save(**state, vae_config=vae.config.to_dict())
        report = ", ".join(f"{name} {psnr(vae_ema, vae_ema, p):.2f} dB" for name, p in (("train", data), ("held out", held)))
        print(f"psnr: {report}; scaling factor {vae.config.scaling_factor}", flush=True)

    while run.progress < 1:
        for part in (vae.decoder, vae.post_quant_conv):
            part.requires_grad_(not options.warm or run.progress >= WARM_FROZEN)
        rate = run.cosine(*stage.rate)
        set_rate(optimizer, rate)
        x = mirrored(data.batch(torch.randint(len(data), (stage.batch,), device=device)))
        with precision(options):
            mean, logvar = (part.float() for part in vae.encode(x))
            output = vae(sample_latent(mean, logvar)).float()
        kl, reconstruction = kl_divergence(mean, logvar), reconstruction_loss(output, x)
        adversarial = gan.generator_loss(reconstruction, output, vae.decoder.conv_out.weight, run.progress)
        loss = reconstruction + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        (loss + adversarial).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        gan.step(x, output.detach(), run.progress)
        follow(vae_ema, vae, min(stage.ema, (run.step + 1) / (run.step + 10)))
        run.log(loss=loss, kl=kl, adversarial=adversarial, rate=rate)
        if run.step % 500 == 0:
            save()
    save()


def train_light(options) -> None:
    """Train the light decoder on the frozen encoder's latents, from weights shared with the full decoder."""
    device, stage = options.device, options.stage
    data, held = Pictures(options.data, device), Pictures(options.data, device, (HELD_STYLE, HELD_CONCEPT))
    vae = load(options.out / "vae", device)
    config = DecoderConfig.from_dict(options.plan.decoder.to_dict() | {"scaling_factor": vae.config.scaling_factor})
    light = LightDecoder(config)
    if options.warm:
        light.load_state_dict(load_part(LightDecoder, DecoderConfig, options.warm / "decoder").state_dict())
    else:
        light.load_state_dict(shared_weights(light, vae))
    light.to(device)
    light_ema = averaged(light)
    gan = PatchGan(0.2 * options.plan.adversarial, device)  # weaker than the VAE's, as in the paper
    optimizer = torch.optim.AdamW(light.parameters(), lr=stage.rate[0], betas=(0.9, 0.99), weight_decay=1e-4)
    state = dict(decoder=light, decoder_ema=light_ema, optimizer=optimizer, **gan.state())
    run = Run(options.out / "decoder", stage.minutes, stage.steps, ["loss", "adversarial", "rate"])
    run.resume(**state)

    def save():
        run.save(**state, decoder_config=config.to_dict())
        report = ", ".join(f"{name} {psnr(vae, light_ema, p):.2f} dB" for name, p in (("train", data), ("held out", held)))
        print(f"psnr: {report}", flush=True)

    while run.progress < 1:
        rate = run.cosine(*stage.rate)
        set_rate(optimizer, rate)
        x = mirrored(data.batch(torch.randint(len(data), (stage.batch,), device=device)))
        with precision(options):
            with torch.no_grad():
                z = sample_latent(*(part.float() for part in vae.encode(x)))
            output = light(z).float()
        loss = reconstruction_loss(output, x)
        adversarial = gan.generator_loss(loss, output, light.decoder.conv_out.weight, run.progress)
        optimizer.zero_grad(set_to_none=True)
        (loss + adversarial).backward()
        torch.nn.utils.clip_grad_norm_(light.parameters(), 1.0)
        optimizer.step()
        gan.step(x, output.detach(), run.progress)
        follow(light_ema, light, min(stage.ema, (run.step + 1) / (run.step + 10)))
        run.log(loss=loss, adversarial=adversarial, rate=rate)
        if run.step % 500 == 0:
            save()
    save()


def shared_weights(light: LightDecoder, vae: Vae) -> dict:
    """Return the light decoder's weights, replaced by the full decoder's wherever name and shape agree."""
    own, given = light.state_dict(), vae.state_dict()
    return own | {k: given[k] for k in own if k in given and given[k].shape == own[k].shape}
