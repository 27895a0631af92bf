"""Text-to-image pipeline of a checkpoint folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from .config import DecoderConfig, SchedulerConfig, TextConfig, UNetConfig
from .decoder import LightDecoder
from .noise import latent_noise
from .samplers import Schedule, ddim, one_step
from .text_encoder import TextEncoder
from .tokenizer import ClipTokenizer
from .unet import UNet


def load_part(model_class, config_class, folder: Path):
    """Load a model with the weights of `folder`, in float32."""
    model = model_class(config_class.load(folder))
    model.load_state_dict({name: t.float() for name, t in load_file(folder / "model.safetensors").items()})
    return model.eval().requires_grad_(False)


class Pipeline:
    """Text encoder, UNet, decoder, and the sampler named by `model.json`."""

    def __init__(self, unet, text_encoder, decoder, sampler: str, steps: int, guidance: float):
        self.unet, self.text_encoder, self.decoder = unet, text_encoder, decoder
        self.sampler, self.steps, self.guidance = sampler, steps, guidance
        self.schedule, self.tokenizer = Schedule(), ClipTokenizer()

    @classmethod
    def load(cls, folder, unet: str = "unet"):
        folder = Path(folder)
        settings = json.loads((folder / "model.json").read_text())
        pipeline = cls(
            load_part(UNet, UNetConfig, folder / unet),
            load_part(TextEncoder, TextConfig, folder / "text_encoder"),
            load_part(LightDecoder, DecoderConfig, folder / "decoder"),
            settings["sampler"], settings["steps"], settings["guidance"],
        )
        pipeline.schedule = Schedule(SchedulerConfig.load(folder / "scheduler"))
        return pipeline

    @torch.no_grad()
    def __call__(self, prompts: list[str], seeds: list[int]) -> torch.Tensor:
        """Draw one picture per prompt and seed, [n, 3, h, w] in 0..1."""
        size = self.unet.config.sample_size
        draw = lambda stream: torch.stack(
            [torch.from_numpy(latent_noise(seed, size, size, self.unet.config.in_channels, stream)) for seed in seeds]
        )
        noise, fresh = draw(0), lambda step, _: draw(step)
        text = self.text_encoder(self.tokenizer(prompts))
        if self.sampler == "one_step":
            latent = one_step(self.unet, self.schedule, noise, text, self.steps, fresh)
        else:
            empty = self.text_encoder(self.tokenizer([""])).expand_as(text)
            latent = ddim(self.unet, self.schedule, noise, text, empty, self.steps, self.guidance)
        return self.decoder.decode(latent)
