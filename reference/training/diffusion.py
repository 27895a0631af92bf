"""Stages `base` (softmax attention, with the text encoder) and `relu` (UNet only, relu attention)."""

import torch
import torch.nn.functional as F

from mobilediffusion.config import TextConfig, UNetConfig
from mobilediffusion.samplers import Schedule
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.tokenizer import ClipTokenizer
from mobilediffusion.unet import UNet

from . import vae
from .common import Pictures, Run, averaged, follow, frozen, load_checkpoint, set_rate

# v-prediction: with epsilon, one step from pure noise divides by a_999 = 0.068 and multiplies
# the network's error by 14.6, which a network this small cannot afford.
UNET = UNetConfig(
    sample_size=8, block_out_channels=[64, 128, 160], layers_mid=2, transformer_depth_mid=[1, 1],
    cross_attention_dim=64, attention_head_dim=32, attention_phi="softmax", time_embed_dim=192, time_proj_dim=128,
    norm_num_groups=16, prediction_type="v_prediction",
)
TEXT = TextConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2)
BATCH, DROPOUT, EMA = 64, 0.1, 0.998
RATES = {"base": (1e-3, 5e-5), "relu": (3e-4, 3e-5)}


class Captioned:
    """Batches of latents [n, 8, 8, 8] with token ids [n, 77] of one of each picture's captions."""

    def __init__(self, options):
        data = Pictures(options.data, options.device)
        encoder, decoder = vae.load(options.out / "vae", options.device)
        self.latents = vae.scaled_latents(encoder, decoder, data.pictures)
        self.weight, self.device = data.weight, options.device
        tokenizer = ClipTokenizer()
        self.ids = [tokenizer(captions).to(options.device) for captions in data.captions]
        self.empty = tokenizer([""]).to(options.device)

    def batch(self, size: int, dropout: float):
        index = torch.multinomial(self.weight, size, replacement=True).tolist()
        ids = [self.ids[i][torch.randint(len(self.ids[i]), ())] for i in index]
        ids = [self.empty[0] if torch.rand(()) < dropout else row for row in ids]
        return self.latents[index], torch.stack(ids)


def new_text_encoder() -> TextEncoder:
    text = TextEncoder(TEXT)
    for embedding in (text.text_model.embeddings.token_embedding, text.text_model.embeddings.position_embedding):
        torch.nn.init.normal_(embedding.weight, std=0.1)
    return text


def load(folder, device):
    """Averaged UNet and text encoder of a stage, in evaluation mode."""
    saved = load_checkpoint(folder)
    unet, text = UNet(UNetConfig.from_dict(saved["unet_config"])), TextEncoder(TEXT)
    unet.load_state_dict(saved["unet_ema"])
    text.load_state_dict(saved["text_ema"])
    return frozen(unet.to(device)), frozen(text.to(device))


def velocity(schedule, x0, noise, t):
    """The v-prediction target a noise - s x0."""
    a, s = schedule.coefficients(t, x0)
    return a * noise - s * x0


def diffusion_loss(unet, schedule, x0, text, t):
    """Mean squared error of the prediction at steps t [n]."""
    noise = torch.randn_like(x0)
    prediction = unet(schedule.add_noise(x0, noise, t), t, text).float()
    return F.mse_loss(prediction, velocity(schedule, x0, noise, t))


def train(options) -> None:
    stage, device = options.stage, options.device
    data, schedule = Captioned(options), Schedule()
    if stage == "base":
        unet, text = UNet(UNET).to(device), new_text_encoder().to(device)
    else:
        unet, text = load(options.out / "base", device)
        unet.requires_grad_(True)
        unet.set_attention_phi("relu")
    unet_ema, text_ema = averaged(unet), averaged(text)
    groups = [{"params": list(unet.parameters()), "weight_decay": 0.01}]
    if stage == "base":  # afterwards the text encoder stays as it is
        groups.append({"params": list(text.parameters()), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999))
    state = dict(unet=unet, text=text, unet_ema=unet_ema, text_ema=text_ema, optimizer=optimizer)
    run = Run(options.out / stage, options.minutes, options.steps, ["loss", "rate"])
    run.resume(**state)
    trained = [p for group in groups for p in group["params"]]

    while run.progress < 1:
        rate = run.cosine(*RATES[stage])
        set_rate(optimizer, rate)
        x0, ids = data.batch(BATCH, DROPOUT)
        t = torch.randint(schedule.steps, (BATCH,), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=options.bf16):
            loss = diffusion_loss(unet, schedule, x0, text(ids), t)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        decay = min(EMA, (run.step + 1) / (run.step + 10))
        follow(unet_ema, unet, decay)
        if stage == "base":
            follow(text_ema, text, decay)
        run.log(loss=loss, rate=rate)
        if run.step % 500 == 0:
            run.save(**state, unet_config=unet.config.to_dict())
    run.save(**state, unet_config=unet.config.to_dict())
