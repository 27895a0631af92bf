"""Stage `ufogen`: from the relu model to one step, by distillation and a diffusion GAN.

First the generator learns its teacher's DDIM trajectories end to end, from
noise to latent in one step (it starts close to the answer, and the GAN is
short). Then UFOGen's objective joins in: a discriminator with the UNet's own
architecture and weights compares noised latents of pictures with noised
predictions, while the reconstruction loss goes on.
"""

import copy

import torch
import torch.nn.functional as F

from mobilediffusion.samplers import Schedule, ddim

from . import diffusion
from .common import Run, averaged, follow, set_rate

BATCH, EMA = 64, 0.995
PAIRS, TEACHER_STEPS, GUIDANCE = 6144, 10, 2.0
GAN_FROM = 0.55  # share of the run after which the discriminator takes part
GAN_WEIGHT = 0.05
GAP = 250  # UFOGen's step between x_t and x_{t-1}, at least
RATES = {"generator": (6e-4, 3e-5), "discriminator": 1e-4}


def discriminator_from(unet):
    """The UNet with one output channel, a logit per location, zero at first."""
    discriminator = copy.deepcopy(unet).requires_grad_(True)
    old = discriminator.conv_out
    discriminator.conv_out = torch.nn.Conv2d(old.in_channels, 1, 3, padding=1).to(old.weight.device)
    for parameter in discriminator.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return discriminator


@torch.no_grad()
def teacher_pairs(folder, data, teacher, text, schedule, count: int):
    """(noise, ids, latent) of the teacher's guided DDIM, computed once and kept in `folder`."""
    path = folder / "pairs.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    parts = []
    for start in range(0, count, 128):
        x0, ids = data.batch(min(128, count - start), dropout=0.0)
        noise = torch.randn_like(x0)
        context, empty = text(ids), text(data.empty).expand(len(ids), -1, -1)
        latent = ddim(teacher, schedule, noise, context, empty, TEACHER_STEPS, GUIDANCE)
        parts.append((noise, ids, latent))
    pairs = [torch.cat(part) for part in zip(*parts)]
    torch.save(pairs, path)
    print(f"{count} trajectories of the teacher", flush=True)
    return pairs


def predict(unet, schedule, x, t, text):
    """Clean latent predicted from x at step t [n]."""
    return schedule.to_x0(unet(x, t, text).float(), x, t, "v_prediction")


def logits(discriminator, schedule, x0, t, text):
    """Logits of x0 [n, 8, h, w] after fresh noise of step t [n]."""
    return discriminator(schedule.add_noise(x0, torch.randn_like(x0), t), t, text).float()


def towards(logit, target: float):
    """Binary cross-entropy to one constant target; logits already right by 0.5 are left alone."""
    logit = logit.clamp(max=0.5) if target else logit.clamp(min=-0.5)
    return F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, target))


def train(options) -> None:
    device = options.device
    data, schedule = diffusion.Captioned(options), Schedule()
    teacher, text = diffusion.load(options.out / "relu", device)
    generator = copy.deepcopy(teacher).requires_grad_(True)
    generator_ema = averaged(generator)
    discriminator = discriminator_from(teacher)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.9, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=RATES["discriminator"], betas=(0.0, 0.999))
    state = dict(unet=generator, unet_ema=generator_ema, discriminator=discriminator, text_ema=text,
                 optimizer=optimizer, optimizer_d=optimizer_d)
    run = Run(options.out / "ufogen", options.minutes, options.steps, ["distill", "diffusion", "adversarial", "discriminator"])
    pairs = teacher_pairs(run.folder, data, teacher, text, schedule, min(PAIRS, 8 * options.steps))
    run.resume(**state)
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=options.bf16)
    last_step = torch.full((BATCH,), schedule.steps - 1, device=device)
    loss_d = torch.zeros(())

    while run.progress < 1:
        set_rate(optimizer, run.cosine(*RATES["generator"]))
        index = torch.randint(len(pairs[0]), (BATCH,))
        noise, ids, target = (part[index] for part in pairs)
        with torch.no_grad():
            context = text(ids)

        # From pure noise to the teacher's answer, in one step.
        with autocast():
            fake = predict(generator, schedule, noise, last_step, context)
        distill = F.mse_loss(fake, target)
        # The diffusion loss on pictures keeps the other steps alive.
        x0, real_ids = data.batch(BATCH // 4, dropout=0.0)
        with torch.no_grad():
            real_context = text(real_ids)
        t = torch.randint(schedule.steps, (len(x0),), device=device)
        with autocast():
            denoise = diffusion.diffusion_loss(generator, schedule, x0, real_context, t)
        loss, adversarial = distill + 0.25 * denoise, torch.zeros(())

        if run.progress >= GAN_FROM:
            # Every noise level below the gap: low levels judge detail, high ones the composition.
            t = torch.randint(schedule.steps - GAP, (BATCH,), device=device)
            discriminator.requires_grad_(False)
            with autocast():
                adversarial = towards(logits(discriminator, schedule, fake, t, context), 1.0)
            discriminator.requires_grad_(True)
            loss = loss + GAN_WEIGHT * adversarial
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        follow(generator_ema, generator, min(EMA, (run.step + 1) / (run.step + 10)))

        if run.progress >= GAN_FROM and run.step % 2 == 0:  # one discriminator step per two of the generator
            x0, real_ids = data.batch(BATCH, dropout=0.0)
            with torch.no_grad():
                real_context = text(real_ids)
            t = torch.randint(schedule.steps - GAP, (BATCH,), device=device)
            with autocast():
                loss_d = towards(logits(discriminator, schedule, x0, t, real_context), 1.0)
                loss_d = loss_d + towards(logits(discriminator, schedule, fake.detach(), t, context), 0.0)
            optimizer_d.zero_grad()
            loss_d.backward()
            torch.nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0)
            optimizer_d.step()
        run.log(distill=distill, diffusion=denoise, adversarial=adversarial, discriminator=loss_d)
        if run.step % 250 == 0:
            run.save(**state, unet_config=generator.config.to_dict())
    run.save(**state, unet_config=generator.config.to_dict())
