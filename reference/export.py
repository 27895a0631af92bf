"""Write the checkpoint: `python reference/export.py --out OUT [--stage STAGE ...]`.

Takes the averaged weights of the given stages from OUT, writes
model/checkpoints/mini in half precision. The first stage becomes `unet/`, a
second one `unet_base/` (for DDIM beside a one-step model); the full VAE goes
into `vae/`, the light decoder into `decoder/`. `--untrained` writes random
weights instead, for loaders that need the format only.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mobilediffusion.config import SchedulerConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.unet import UNet
from mobilediffusion.vae import Vae
from training import diffusion, vae
from training.common import frozen
from training.plan import PLANS

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "model" / "checkpoints" / "mini"


def write_part(model: torch.nn.Module, folder: Path) -> None:
    """`config.json` and `model.safetensors` (float16)."""
    model.config.save(folder)
    path = folder / "model.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, path)
    path.chmod(0o644)


def write_json(values: dict, path: Path) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def untrained(plan):
    """Models of the right shapes with PyTorch's initial weights, zero-initialised layers filled in."""
    torch.manual_seed(0)
    # The plan's own configurations are shared by everyone; training writes into its copies.
    unet, text = UNet(copy.deepcopy(plan.unet)), diffusion.new_text_encoder(plan.text)
    unet.set_attention_phi("relu")
    for parameter in unet.parameters():
        if not parameter.any() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    parts = [unet, text, LightDecoder(copy.deepcopy(plan.decoder)), Vae(copy.deepcopy(plan.vae))]
    unet, *others = (frozen(part) for part in parts)
    return [unet], *others


def trained(out: Path, stages: list[str]):
    """UNets, text encoder, light decoder, VAE of a finished run."""
    unets, texts = zip(*(diffusion.load(out / stage, "cpu") for stage in stages))
    text = diffusion.load_text(out / "words", "cpu") if (out / "words").exists() else texts[0]
    return list(unets), text, vae.load_light(out / "decoder", "cpu"), vae.load(out / "vae", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the training stages")
    parser.add_argument("--plan", choices=PLANS, default="cpu")
    parser.add_argument("--stage", nargs="+", default=["ufogen", "relu"], choices=["base", "relu", "ufogen"])
    parser.add_argument("--sampler", choices=["ddim", "one_step"], default="one_step")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--untrained", action="store_true")
    options = parser.parse_args()

    plan = PLANS[options.plan]
    unets, text, decoder, full = untrained(plan) if options.untrained else trained(options.out, options.stage)
    for unet, name in zip(unets, ("unet", "unet_base")):
        write_part(unet, options.folder / name)
    for part, name in ((text, "text_encoder"), (decoder, "decoder"), (full, "vae")):
        write_part(part, options.folder / name)
    SchedulerConfig(prediction_type=unets[0].config.prediction_type).save(options.folder / "scheduler")
    size = unets[0].config.sample_size * 8
    settings = {"name": options.folder.name, "image_size": size, "sampler": options.sampler, "steps": options.steps}
    if options.sampler == "one_step":
        settings["ddim"] = {"steps": 20, "guidance": 3.0}  # for what one step cannot do: guidance, fresh noise, more steps
    description = f"Emoji-like {size}x{size} pictures; see README.md."
    write_json(settings | {"guidance": options.guidance, "description": description}, options.folder / "model.json")
    megabytes = sum(f.stat().st_size for f in options.folder.rglob("*.safetensors")) / 1e6
    print(f"{options.folder}: {megabytes:.1f} MB of weights")


if __name__ == "__main__":
    main()
