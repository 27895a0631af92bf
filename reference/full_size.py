"""Write full-size random checkpoints and their golden outputs: `python reference/full_size.py OUT [PART ...]`.

OUT/PART holds `config.json`, `model.safetensors` and `golden.safetensors`, the outputs of every block in one
evaluation. The UNet gets a 64x64 latent and 77 tokens, the decoders a 64x64 latent, the encoder a 512x512 picture, the
text encoder 77 tokens. Weights have values that float16 holds exactly, so both `--dtype` describe the same network.
The default parts take about 2.5 GB of disk and 6 GB of memory.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

import golden
from mobilediffusion.config import ALTERNATIVES, DecoderConfig, StableDiffusionConfig, TextConfig, UNetConfig, VaeConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.sd15 import StableDiffusionUNet
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.unet import UNet
from mobilediffusion.vae import Vae

INPUTS = golden.Inputs(31)
EVALUATION = lambda config: INPUTS.unet(config, 64, 64, [999.0], tokens=77)
LATENT = lambda config: {"latent": INPUTS.normal(1, config.latent_channels, 64, 64)}
PICTURE = lambda config: {"image": INPUTS.normal(1, 3, 512, 512)}

# Class, configuration, inputs, and the function that runs the model (None: the model itself).
PARTS = {
    "unet": (UNet, UNetConfig(), EVALUATION, None),
    "decoder": (LightDecoder, DecoderConfig(scaling_factor=0.75), LATENT, golden.decode),
    "text_encoder": (TextEncoder, TextConfig(), lambda config: INPUTS.ids(config, 1), None),
    "vae_encoder": (Vae, VaeConfig(scaling_factor=0.75), PICTURE, golden.encode),
    "vae_decoder": (Vae, VaeConfig(scaling_factor=0.75), LATENT, golden.decode),
    "sd15_unet": (StableDiffusionUNet, StableDiffusionConfig(), EVALUATION, None),
} | {name: (UNet, UNetConfig(**switches), EVALUATION, None) for name, switches in ALTERNATIVES.items()}


def write(part: str, folder: Path, dtype: torch.dtype) -> None:
    model_class, config, inputs, run = PARTS[part]
    model = golden.randomise(model_class(config), seed=41)
    golden.save_model(model, folder, dtype)
    save_file(golden.record(model, inputs(config), run and run(model)), folder / "golden.safetensors")
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", default=["unet", "decoder", "text_encoder"], help=f"networks to write, of {', '.join(PARTS)}")
    parser.add_argument("--dtype", choices=["f16", "f32"], default="f16", help="storage type of the checkpoint")
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"{part} is not one of {', '.join(PARTS)}")
        write(part, options.out / part, {"f16": torch.float16, "f32": torch.float32}[options.dtype])


if __name__ == "__main__":
    main()
