"""Draw a contact sheet: `python reference/sample.py SHEET.png [--seeds 0 1 2]`.

One column per prompt, one row per seed, each drawn once. `--stage OUT/STAGE`
draws from a training stage's checkpoint instead of model/checkpoints/mini.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from mobilediffusion.pipeline import Pipeline

BUNDLED = Path(__file__).resolve().parents[1] / "model" / "checkpoints" / "mini"
PROMPTS = [
    "red apple", "sun", "cat face", "pizza", "airplane", "guitar", "house with garden", "snowman",
    "blue whale", "birthday cake", "green frog", "umbrella", "rocket", "coffee cup", "rainbow", "soccer ball",
]


def from_stage(folder: Path) -> Pipeline:
    """Load the averaged weights of a training stage.

    The decoder comes from the stage `decoder` or, without it, `vae`.
    """
    from training import diffusion, vae

    unet, text = diffusion.load(folder, "cpu")
    light = folder.parent / "decoder"
    decoder = vae.load_light(light, "cpu") if (light / "checkpoint.pt").exists() else vae.load(folder.parent / "vae", "cpu")
    return Pipeline(unet, text, decoder, "ddim", 20, 3.0)


def as_image(picture: torch.Tensor) -> Image.Image:
    """Convert a picture [3, h, w] in 0..1."""
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def draw_sheet(pictures: torch.Tensor, prompts: list[str], rows: int, scale: int) -> Image.Image:
    """Draw pictures [rows * prompts, 3, h, w] in 0..1 as a sheet with the prompts on top."""
    side, top = pictures.shape[-1] * scale, 16
    sheet = Image.new("RGB", (side * len(prompts), top + side * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, len(prompts))
        sheet.paste(as_image(picture).resize((side, side), Image.NEAREST), (x * side, top + y * side))
    for x, prompt in enumerate(prompts):
        draw.text((x * side + 4, 2), prompt, fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--unet", default="unet", help="subfolder of the checkpoint that holds the UNet")
    parser.add_argument("--stage", type=Path, help="a training stage's folder instead of a checkpoint")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sampler", choices=["ddim", "one_step"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--pictures", type=Path, help="folder for the single pictures, `PROMPT-SEED.png`")
    options = parser.parse_args()
    torch.manual_seed(0)  # for the fresh noise of a few-step sampler

    pipeline = from_stage(options.stage) if options.stage else Pipeline.load(options.checkpoint, options.unet)
    for key in ("sampler", "steps", "guidance"):
        if getattr(options, key) is not None:
            setattr(pipeline, key, getattr(options, key))
    seeds = [seed for seed in options.seeds for _ in options.prompts]
    prompts = options.prompts * len(options.seeds)
    pictures = pipeline(prompts, seeds)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for picture, prompt, seed in zip(pictures, prompts, seeds):
            as_image(picture).save(options.pictures / f"{prompt.replace(' ', '-')}-{seed}.png")
    draw_sheet(pictures, options.prompts, len(options.seeds), options.scale).save(options.sheet)


if __name__ == "__main__":
    main()
