"""Stages `base` (softmax attention, with the text encoder) and `relu` (UNet only, relu attention)."""

import torch
import torch.nn.functional as F

from mobilediffusion.config import TextConfig, UNetConfig
from mobilediffusion.pipeline import load_part
from mobilediffusion.samplers import Schedule
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.tokenizer import ClipTokenizer
from mobilediffusion.unet import UNet

from . import vae
from .common import Pictures, Run, averaged, follow, frozen, load_checkpoint, precision, set_rate

DROPOUT = 0.1  # share of captions replaced by the empty one


class Captioned:
    """Source of batches: latents [n, 8, h, w], and token ids [n, 77] of one caption of each picture."""

    def __init__(self, options):
        data = Pictures(options.data, options.device)
        self.latents = vae.scaled_latents(vae.load(options.out / "vae", options.device), data)
        self.weight, self.device = data.weight, options.device
        tokenizer = ClipTokenizer()
        self.ids = [tokenizer(captions).to(options.device) for captions in data.captions]
        self.empty = tokenizer([""]).to(options.device)

    def batch(self, size: int, dropout: float):
        index = torch.multinomial(self.weight, size, replacement=True).tolist()
        ids = [self.ids[i][torch.randint(len(self.ids[i]), ())] for i in index]
        ids = [self.empty[0] if torch.rand(()) < dropout else row for row in ids]
        return self.latents[index], torch.stack(ids)


def new_text_encoder(config: TextConfig) -> TextEncoder:
    text = TextEncoder(config)
    for embedding in (text.text_model.embeddings.token_embedding, text.text_model.embeddings.position_embedding):
        torch.nn.init.normal_(embedding.weight, std=0.1)
    return text


def load_text(folder, device) -> TextEncoder:
    """Load the averaged text encoder of a stage, in evaluation mode."""
    saved = load_checkpoint(folder)
    text = TextEncoder(TextConfig.from_dict(saved["text_config"]))
    text.load_state_dict(saved["text_ema"])
    return frozen(text.to(device))


def load(folder, device):
    """Load the averaged UNet and text encoder of a stage, in evaluation mode."""
    saved = load_checkpoint(folder)
    unet = UNet(UNetConfig.from_dict(saved["unet_config"]))
    unet.load_state_dict(saved["unet_ema"])
    return frozen(unet.to(device)), load_text(folder, device)


def start(options):
    """Return the networks that a stage starts from, trainable."""
    if options.name == "relu":
        unet, text = load(options.out / "base", options.device)
    elif options.warm:
        unet = load_part(UNet, UNetConfig, options.warm / "unet_base")
        text = load_part(TextEncoder, TextConfig, options.warm / "text_encoder")
    else:
        unet, text = UNet(options.plan.unet), new_text_encoder(options.plan.text)
    unet.set_attention_phi("relu" if options.name == "relu" else "softmax")
    text.requires_grad_(options.name == "base")  # later stages keep the text encoder frozen
    return unet.to(options.device).requires_grad_(True), text.to(options.device)


def velocity(schedule, x0, noise, t):
    """Return the target of v-prediction, a noise - s x0."""
    a, s = schedule.coefficients(t, x0)
    return a * noise - s * x0


def diffusion_loss(unet, schedule, x0, text, t):
    """Return the mean squared error of the predicted v at steps t [n]."""
    noise = torch.randn_like(x0)
    prediction = unet(schedule.add_noise(x0, noise, t), t, text).float()
    return F.mse_loss(prediction, velocity(schedule, x0, noise, t))


def train(options) -> None:
    stage, device = options.stage, options.device
    data, schedule = Captioned(options), Schedule()
    unet, text = start(options)
    unet_ema, text_ema = averaged(unet), averaged(text)
    groups = [{"params": list(unet.parameters()), "weight_decay": 0.01}]
    if options.name == "base":
        # A warm-started text encoder changes slowly, so that other networks trained with its embeddings still fit.
        groups.append({"params": list(text.parameters()), "weight_decay": 0.0, "factor": 0.3 if options.warm else 1.0})
    optimizer = torch.optim.AdamW(groups, lr=stage.rate[0], betas=(0.9, 0.999))
    state = dict(unet=unet, text=text, unet_ema=unet_ema, text_ema=text_ema, optimizer=optimizer)
    run = Run(options.out / options.name, stage.minutes, stage.steps, ["loss", "rate"])
    run.resume(**state)
    configs = dict(unet_config=unet.config.to_dict(), text_config=text.config.to_dict())
    trained = [p for group in groups for p in group["params"]]

    while run.progress < 1:
        rate = run.cosine(*stage.rate)
        set_rate(optimizer, rate)
        x0, ids = data.batch(stage.batch, DROPOUT)
        t = torch.randint(schedule.steps, (stage.batch,), device=device)
        with precision(options):
            loss = diffusion_loss(unet, schedule, x0, text(ids), t)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        decay = min(stage.ema, (run.step + 1) / (run.step + 10))
        follow(unet_ema, unet, decay)
        if options.name == "base":
            follow(text_ema, text, decay)
        run.log(loss=loss, rate=rate)
        if run.step % 250 == 0:
            run.save(**state, **configs)
    run.save(**state, **configs)
