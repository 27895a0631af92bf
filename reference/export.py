"""Write the checkpoint: `python reference/export.py --out OUT [--stage STAGE ...]`.

Takes the averaged weights of the given stages from OUT, writes
model/checkpoints/tiny in half precision. The first stage becomes `unet/`, a
second one `unet_base/` (for DDIM beside a one-step model). `--untrained`
writes random weights instead, for loaders that need the format only.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mobilediffusion.config import DecoderConfig, SchedulerConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.unet import UNet
from training import diffusion, vae
from training.common import frozen

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "model" / "checkpoints" / "tiny"
DESCRIPTION = "Emoji-like 64x64 pictures of 76 things; trained on a CPU from scratch. See README.md."


def write_part(model: torch.nn.Module, folder: Path) -> None:
    """`config.json` and `model.safetensors` (float16)."""
    model.config.save(folder)
    path = folder / "model.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, path)
    path.chmod(0o644)


def write_json(values: dict, path: Path) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def untrained():
    """Models of the right shapes with PyTorch's initial weights, zero-initialised layers filled in."""
    torch.manual_seed(0)
    unet, text = UNet(diffusion.UNET), diffusion.new_text_encoder()
    unet.set_attention_phi("relu")
    for parameter in unet.parameters():
        if not parameter.any() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return [frozen(unet)], frozen(text), frozen(LightDecoder(DecoderConfig.from_dict(vae.DECODER.to_dict())))


def trained(out: Path, stages: list[str]):
    unets, texts = zip(*(diffusion.load(out / stage, "cpu") for stage in stages))
    return list(unets), texts[0], vae.load(out / "vae", "cpu")[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the training stages")
    parser.add_argument("--stage", nargs="+", default=["ufogen", "relu"], choices=["base", "relu", "ufogen"])
    parser.add_argument("--sampler", choices=["ddim", "one_step"], default="one_step")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--untrained", action="store_true")
    options = parser.parse_args()

    unets, text, decoder = untrained() if options.untrained else trained(options.out, options.stage)
    for unet, name in zip(unets, ("unet", "unet_base")):
        write_part(unet, options.folder / name)
    write_part(text, options.folder / "text_encoder")
    write_part(decoder, options.folder / "decoder")
    SchedulerConfig(prediction_type=unets[0].config.prediction_type).save(options.folder / "scheduler")
    pipeline = {"name": "tiny", "image_size": 64, "sampler": options.sampler, "steps": options.steps}
    write_json(pipeline | {"guidance": options.guidance, "description": DESCRIPTION}, options.folder / "model.json")
    size = sum(f.stat().st_size for f in options.folder.rglob("*.safetensors"))
    print(f"{options.folder}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
