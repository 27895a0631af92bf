"""Stages `pairs`, which records the base model's DDIM trajectories, and `ufogen`, which trains the one-step UNet.

The stage `ufogen` starts from the relu model. A discriminator with the UNet's
architecture and weights compares noised latents of pictures with noised
predictions of the generator, in addition to a reconstruction loss on noised
pictures (UFOGen, arXiv 2311.09257). At this small size the stage begins with
distillation: the generator learns the base model's DDIM trajectories end to
end, from noise to latent, and the discriminator joins for the last part of the
run. With `pairs` 0 in the plan there is no distillation, as in the paper.
reference/README.md lists the differences from the paper's recipe.
"""

import copy

import torch
import torch.nn.functional as F

from mobilediffusion.config import UNetConfig
from mobilediffusion.pipeline import load_part
from mobilediffusion.samplers import Schedule, ddim
from mobilediffusion.unet import UNet

from . import diffusion, lora
from .common import Run, averaged, follow, load_checkpoint, precision, set_rate

LOSSES = ("diffusion", "distill", "ema")
JOINS = 0.7  # share of the run after which the discriminator joins, if the run starts with distillation
RECONSTRUCTION, ADVERSARIAL = 0.25, 0.05  # weights of the losses; that of the trajectories is 1
GAP = 250  # the discriminator's steps stay this far below the last one: UFOGen's gap between x_t and x_{t-1}
RATE_D = 1e-4


def discriminator_from(unet):
    """Return a copy of the UNet with one output channel: a logit per location, zero at first."""
    discriminator = copy.deepcopy(unet).requires_grad_(True)
    old = discriminator.conv_out
    discriminator.conv_out = torch.nn.Conv2d(old.in_channels, 1, 3, padding=1).to(old.weight.device)
    for parameter in discriminator.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return discriminator


@torch.no_grad()
def draw_pairs(options) -> None:
    """Record (noise, token ids, latent) of the base model's guided DDIM on training captions."""
    plan, batch = options.plan, options.stage.batch
    if plan.pairs == 0:
        return  # As in the paper, the stage `ufogen` needs only noise and pictures.
    data, schedule = diffusion.Captioned(options), Schedule()
    teacher, text = diffusion.load(options.out / "base", options.device)
    run = Run(options.out / "pairs", options.stage.minutes, min(options.stage.steps, -(-plan.pairs // batch)), ["pairs"])
    parts = {name: [] for name in ("noise", "ids", "latent")}
    if run.resume():
        saved = load_checkpoint(run.folder)
        parts = {name: [saved[name]] for name in parts}
    whole = lambda: {name: torch.cat(all) for name, all in parts.items()}
    # Every save writes all pairs again, so saves are rare.
    every = max(10, run.limit_steps // 10)
    while run.progress < 1:
        x0, ids = data.batch(batch, dropout=0.0)
        noise = torch.randn_like(x0)
        with precision(options):
            context, empty = text(ids), text(data.empty).expand(len(ids), -1, -1)
            latent = ddim(teacher, schedule, noise, context, empty, plan.teacher_steps, plan.guidance).float()
        for name, new in (("noise", noise), ("ids", ids), ("latent", latent)):
            parts[name].append(new.cpu())
        run.log(every=10, pairs=sum(map(len, parts["ids"])))
        if run.step % every == 0:
            run.save(**whole())
    if parts["ids"]:
        run.save(**whole())


def load_pairs(folder, device):
    """Load noise, ids and latents that `draw_pairs` recorded."""
    saved = load_checkpoint(folder)
    return [saved[name].to(device) for name in ("noise", "ids", "latent")]


def predict(unet, schedule, x, t, text):
    """Return the clean latent predicted from x at step t [n]."""
    return schedule.to_x0(unet(x, t, text).float(), x, t, "v_prediction")


def logits(discriminator, schedule, x0, t, text):
    """Return the logits of x0 [n, 8, h, w] after adding fresh noise of step t [n]."""
    return discriminator(schedule.add_noise(x0, torch.randn_like(x0), t), t, text).float()


def towards(logit, target: float):
    """Return the binary cross-entropy to one constant target.

    Logits on the right side by 0.5 or more get no gradient.
    """
    logit = logit.clamp(max=0.5) if target else logit.clamp(min=-0.5)
    return F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, target))


class Game:
    """Generator and discriminator, with the data and networks that both use."""

    def __init__(self, options):
        self.options, self.schedule, self.device = options, Schedule(), options.device
        self.data = diffusion.Captioned(options)
        self.teacher, self.text = diffusion.load(options.out / "relu", options.device)
        self.generator = copy.deepcopy(self.teacher)
        if options.warm:
            self.generator = load_part(UNet, UNetConfig, options.warm / "unet").to(self.device)
        self.generator.requires_grad_(True)
        if options.lora:
            lora.attach(self.generator, options.lora)
        self.average = averaged(self.generator)
        self.discriminator = discriminator_from(self.teacher)

    def batch(self, size: int):
        """Draw latents of pictures with their encoded captions."""
        x0, ids = self.data.batch(size, dropout=0.0)
        with torch.no_grad(), precision(self.options):
            return x0, self.text(ids)

    def steps(self, count: int, below: int):
        """Draw random training steps [count], each below `below`."""
        return torch.randint(below, (count,), device=self.device)

    def reconstruct(self, size: int):
        """Return the reconstruction loss on noised pictures, the predicted clean latents and their captions.

        The target is the picture for `diffusion`, the frozen teacher's prediction for `distill` and the averaged
        generator's for `ema`. The loss compares v; it equals the clean latent's loss divided by s_t squared.
        """
        x0, context = self.batch(size)
        t, noise = self.steps(size, self.schedule.steps), torch.randn_like(x0)
        x = self.schedule.add_noise(x0, noise, t)
        target = diffusion.velocity(self.schedule, x0, noise, t)
        with precision(self.options):
            if self.options.loss != "diffusion":
                guide = self.teacher if self.options.loss == "distill" else self.average
                with torch.no_grad():
                    target = guide(x, t, context).float()
            v = self.generator(x, t, context).float()
        return F.mse_loss(v, target), self.schedule.to_x0(v, x, t, "v_prediction"), context

    def fool(self, fake, context):
        """Return the generator's loss: the frozen discriminator should take its predictions for pictures."""
        # Every noise level below the gap, independent of the generator's step: low levels judge detail, high ones the
        # composition.
        t = self.steps(len(fake), self.schedule.steps - GAP)
        self.discriminator.requires_grad_(False)
        with precision(self.options):
            loss = towards(logits(self.discriminator, self.schedule, fake, t, context), 1.0)
        self.discriminator.requires_grad_(True)
        return loss

    def judge(self, fake, context):
        """Return the discriminator's loss on pictures and on predictions. No gradient reaches the generator."""
        x0, real_context = self.batch(len(fake))
        t = self.steps(len(fake), self.schedule.steps - GAP)
        with precision(self.options):
            real = towards(logits(self.discriminator, self.schedule, x0, t, real_context), 1.0)
            return real + towards(logits(self.discriminator, self.schedule, fake.detach(), t, context), 0.0)


def descend(optimizer, loss, parameters) -> None:
    """Take one step of an optimiser, with gradients clipped to norm 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def train(options) -> None:
    stage, game = options.stage, Game(options)
    trained = [p for p in game.generator.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=stage.rate[0], betas=(0.9, 0.999))
    optimizer_d = torch.optim.Adam(game.discriminator.parameters(), lr=RATE_D, betas=(0.0, 0.999))
    state = dict(unet=game.generator, average=game.average, discriminator=game.discriminator,
                 optimizer=optimizer, optimizer_d=optimizer_d)
    columns = ["trajectory", "reconstruction", "adversarial", "discriminator"]
    run = Run(options.out / "ufogen", stage.minutes, stage.steps, columns)
    distilled = options.plan.pairs > 0
    if distilled:
        pairs = load_pairs(options.out / "pairs", options.device)
    run.resume(**state)
    last_step = torch.full((stage.batch,), game.schedule.steps - 1, device=options.device)
    joins = JOINS if distilled else 0.0
    trajectory = adversarial = loss_d = torch.zeros(())

    def save():
        # The checkpoint has the keys of the other stages: the averaged UNet under its plain names.
        run.save(**state, unet_ema=lora.merged(game.average), text_ema=game.text,
                 unet_config=game.generator.config.to_dict(), text_config=game.text.config.to_dict())

    while run.progress < 1:
        set_rate(optimizer, run.cosine(*stage.rate))
        # Reconstruction at every step; with distillation a quarter of the batch is enough.
        reconstruction, fake, context = game.reconstruct(max(1, stage.batch // 4) if distilled else stage.batch)
        loss = RECONSTRUCTION * reconstruction if distilled else reconstruction
        if distilled:  # from pure noise to the teacher's answer, in one step
            index = torch.randint(len(pairs[0]), (stage.batch,), device=options.device)
            noise, ids, target = (part[index] for part in pairs)
            with precision(options):
                with torch.no_grad():
                    context = game.text(ids)
                fake = predict(game.generator, game.schedule, noise, last_step, context)
            trajectory = F.mse_loss(fake, target)
            loss = loss + trajectory
        playing = run.progress >= joins
        if playing:
            adversarial = game.fool(fake, context)
            loss = loss + (ADVERSARIAL if distilled else 1.0) * adversarial
        descend(optimizer, loss, trained)
        follow(game.average, game.generator, min(stage.ema, (run.step + 1) / (run.step + 10)))
        if playing and run.step % 2 == 0:  # one discriminator step per two of the generator
            loss_d = game.judge(fake, context)
            descend(optimizer_d, loss_d, game.discriminator.parameters())
        run.log(trajectory=trajectory, reconstruction=reconstruction, adversarial=adversarial, discriminator=loss_d)
        if run.step % 250 == 0:
            save()
    save()
