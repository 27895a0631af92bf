"""Write a checkpoint: `python reference/export.py --out OUT [--stage STAGE ...]`.

Takes the averaged weights of the given stages from OUT and writes them to
`--folder` (default model/checkpoints/mini) in half precision. The UNet of the
first stage becomes `unet/`, that of a second one `unet_base/`, with which a
one-step model samples by DDIM. The full VAE becomes `vae/`, the light decoder
`decoder/`. `--untrained` writes random weights instead, for tests that need
only the format.
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

# Steps and guidance of each sampler where the options name none. Those of DDIM stand in `model.json` of one-step models too.
DEFAULTS = {"one_step": (1, 1.0), "ddim": (20, 3.0)}
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "model" / "checkpoints" / "mini"


def write_part(model: torch.nn.Module, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` (float16) of a model."""
    model.config.save(folder)
    path = folder / "model.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, path)
    path.chmod(0o644)


def write_json(values: dict, path: Path) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def untrained(plan):
    """Return models of the plan's shapes with PyTorch's initial weights; zero-initialised layers get random weights."""
    torch.manual_seed(0)
    # Models keep their configurations and change them, and all users of a plan share it.
    plan = copy.deepcopy(plan)
    unet, text = UNet(plan.unet), diffusion.new_text_encoder(plan.text)
    unet.set_attention_phi("relu")
    for parameter in unet.parameters():
        if not parameter.any() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    parts = [unet, text, LightDecoder(plan.decoder), Vae(plan.vae)]
    unet, *others = (frozen(part) for part in parts)
    return [unet], *others


def trained(out: Path, stages: list[str]):
    """Load the UNets, text encoder, light decoder and VAE of a finished run."""
    unets, texts = zip(*(diffusion.load(out / stage, "cpu") for stage in stages))
    text = diffusion.load_text(out / "words", "cpu") if (out / "words").exists() else texts[0]
    return list(unets), text, vae.load_light(out / "decoder", "cpu"), vae.load(out / "vae", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the training stages")
    parser.add_argument("--plan", choices=PLANS, default="cpu", help="plan whose shapes --untrained takes")
    parser.add_argument("--stage", nargs="+", default=["ufogen", "relu"], choices=["base", "relu", "ufogen"],
                        help="stages of `unet` and, if there are two, `unet_base`")
    parser.add_argument("--sampler", choices=DEFAULTS, default="one_step", help="the checkpoint's sampler")
    parser.add_argument("--steps", type=int, help="its steps [default: 1 for one_step, 20 for ddim]")
    parser.add_argument("--guidance", type=float, help="its scale of guidance [default: 1 for one_step, 3 for ddim]")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="folder to write")
    parser.add_argument("--untrained", action="store_true", help="write random weights")
    options = parser.parse_args()
    steps, guidance = DEFAULTS[options.sampler]
    steps = steps if options.steps is None else options.steps
    guidance = guidance if options.guidance is None else options.guidance

    plan = PLANS[options.plan]
    unets, text, decoder, full = untrained(plan) if options.untrained else trained(options.out, options.stage)
    for unet, name in zip(unets, ("unet", "unet_base")):
        write_part(unet, options.folder / name)
    for part, name in ((text, "text_encoder"), (decoder, "decoder"), (full, "vae")):
        write_part(part, options.folder / name)
    SchedulerConfig(prediction_type=unets[0].config.prediction_type).save(options.folder / "scheduler")
    size = unets[0].config.sample_size * 8
    settings = {"name": options.folder.name, "image_size": size, "sampler": options.sampler, "steps": steps}
    if options.sampler == "one_step":
        # For what one step cannot do: guidance, negative prompts and more steps.
        settings["ddim"] = dict(zip(("steps", "guidance"), DEFAULTS["ddim"]))
    description = f"Emoji-like {size}x{size} pictures; see README.md."
    write_json(settings | {"guidance": guidance, "description": description}, options.folder / "model.json")
    megabytes = sum(f.stat().st_size for f in options.folder.rglob("*.safetensors")) / 1e6
    print(f"{options.folder}: {megabytes:.1f} MB of weights")


if __name__ == "__main__":
    main()
