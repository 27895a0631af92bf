"""The table of results: every row is a set of pictures of the same captions, measured by the dual encoder.

Captions are drawn from the training captions: known things in known styles. The
Fréchet distance is taken to all held-out real pictures.
"""

from dataclasses import dataclass

import torch

from mobilediffusion.config import DecoderConfig, TextConfig, UNetConfig, VaeConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.noise import latent_noise
from mobilediffusion.pipeline import load_part
from mobilediffusion.samplers import Schedule, ddim, one_step
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.tokenizer import ClipTokenizer
from mobilediffusion.unet import UNet
from mobilediffusion.vae import Vae
from training import diffusion
from training.common import HELD_CONCEPT, HELD_STYLE, Pictures

from .metrics import frechet, psnr, retrieval


@dataclass(frozen=True)
class Row:
    """How the pictures of one row are made."""

    label: str
    unet: str  # `unet` or `unet_base` of the checkpoint, or `base` of the training run
    steps: int
    guidance: float  # 0 for the one-step sampler
    decoder: str = "light"


ROWS = {
    "softmax-50": Row("base, softmax, DDIM 50 steps, guidance 3", "base", 50, 3.0),
    "relu-50": Row("base, relu, DDIM 50 steps, guidance 3", "unet_base", 50, 3.0),
    "one-step": Row("one step", "unet", 1, 0.0),
    "four-steps": Row("one-step model, 4 steps", "unet", 4, 0.0),
    "one-step-full": Row("one step, full decoder", "unet", 1, 0.0, "full"),
}


class Judge:
    """Dual encoder with the prompts, their embeddings and the held-out pictures."""

    def __init__(self, dual, data_folder, captions: int):
        self.dual, self.tokenizer = dual, ClipTokenizer()
        self.known, self.held = Pictures(data_folder, "cpu"), Pictures(data_folder, "cpu", (HELD_STYLE, HELD_CONCEPT))
        self.held_style = Pictures(data_folder, "cpu", (HELD_STYLE,))
        pairs = [(c, text) for c, texts in zip(self.known.concept.tolist(), self.known.captions) for text in texts]
        generator = torch.Generator().manual_seed(0)
        chosen = [pairs[i] for i in torch.randint(len(pairs), (captions,), generator=generator).tolist()]
        self.concepts, self.prompts = torch.tensor([c for c, _ in chosen]), [text for _, text in chosen]
        self.texts = self.embed_texts(self.prompts)
        self.reference = self.embed(self.held.batches())

    @torch.no_grad()
    def embed(self, batches):
        return torch.cat([self.dual.image(batch) for batch in batches])

    @torch.no_grad()
    def embed_texts(self, texts: list[str]):
        return self.dual.text(self.tokenizer(texts))

    def judge(self, images, texts, concepts) -> dict:
        """Measure embedded pictures with their embedded captions."""
        recall = retrieval(images, texts, concepts, self.texts, self.concepts)
        return {"r1": recall[1], "r10": recall[10], "frechet": frechet(images, self.reference)}

    def real(self, pictures: Pictures) -> dict:
        """Measure real pictures, each with its first caption."""
        texts = self.embed_texts([texts[0] for texts in pictures.captions])
        return self.judge(self.embed(pictures.batches()), texts, torch.from_numpy(pictures.concept))


class Painter:
    """Draw a row's pictures. Picture i starts from the noise of seed i in every row."""

    def __init__(self, checkpoint, run):
        self.checkpoint, self.run, self.schedule, self.tokenizer = checkpoint, run, Schedule(), ClipTokenizer()
        self.text = load_part(TextEncoder, TextConfig, checkpoint / "text_encoder")
        self.decoders = {
            "light": load_part(LightDecoder, DecoderConfig, checkpoint / "decoder"),
            "full": load_part(Vae, VaeConfig, checkpoint / "vae"),
        }

    def unet(self, name: str) -> UNet:
        """Load a UNet of the checkpoint or, if it has none of that name, of a training stage."""
        if (self.checkpoint / name).exists():
            return load_part(UNet, UNetConfig, self.checkpoint / name)
        if self.run is None:
            raise ValueError(f"the checkpoint has no UNet {name!r}: name the training run with --out")
        return diffusion.load(self.run / name, "cpu")[0]

    @torch.no_grad()
    def draw(self, row: Row, prompts: list[str], batch: int = 50):
        """Yield batches of pictures [n, 3, h, w] in -1..1."""
        unet, decoder = self.unet(row.unet), self.decoders[row.decoder]
        side = unet.config.sample_size
        torch.manual_seed(0)  # for the fresh noise between several steps
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            noise = torch.stack([torch.from_numpy(latent_noise(start + i, side, side)) for i in range(len(some))])
            text = self.text(self.tokenizer(some))
            if row.guidance:
                empty = self.text(self.tokenizer([""])).expand_as(text)
                latent = ddim(unet, self.schedule, noise, text, empty, row.steps, row.guidance)
            else:
                latent = one_step(unet, self.schedule, noise, text, row.steps)
            yield decoder.decode(latent) * 2 - 1

    @torch.no_grad()
    def reconstruction(self, pictures: Pictures) -> dict:
        """Measure the PSNR of real pictures after encoding, and decoding by each decoder."""
        vae = self.decoders["full"]
        found = {}
        for name, decoder in self.decoders.items():
            drawn = torch.cat([decoder.decode(vae.encode(p)[0] * vae.config.scaling_factor) for p in pictures.batches()])
            found[name] = psnr(drawn, (pictures.batch(slice(None)) + 1) / 2)
        return found


def markdown(found: dict) -> str:
    """Format both tables of the model card."""
    lines = ["| pictures | R@1 | R@10 | Fréchet x 100 |", "|---|---|---|---|"]
    for row in found["rows"].values():
        lines.append(f"| {row['label']} | {row['r1']:.1%} | {row['r10']:.1%} | {100 * row['frechet']:.2f} |")
    lines += ["", "| PSNR of the VAE, dB | full decoder | light decoder |", "|---|---|---|"]
    for label, values in found["psnr"].items():
        lines.append(f"| {label} | {values['full']:.2f} | {values['light']:.2f} |")
    return "\n".join(lines) + "\n"
