"""Train one stage: `python reference/train.py STAGE --data DATA --out OUT`.

    vae      encoder and full decoder
    base     UNet with softmax attention, together with the text encoder
    relu     the same loss after the switch to relu attention
    pairs    what the base model draws from which noise
    ufogen   adversarial fine-tuning to one step
    decoder  light decoder, distilled with the encoder frozen
    words    words outside the captions, from a frozen sentence encoder; may be left out
    all      every stage but `words`, one after the other

Each stage keeps its checkpoint and its curve in OUT/STAGE, starts from the
stage before it, and goes on where it stopped when started again. `--plan` says
how large everything is and how long it takes; `--warm CHECKPOINT` starts a stage
from the same part of an exported checkpoint instead.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from training import diffusion, ufogen, vae, words
from training.plan import PLANS

STAGES = {
    "vae": vae.train, "base": diffusion.train, "relu": diffusion.train, "pairs": ufogen.draw_pairs, "ufogen": ufogen.train,
    "decoder": vae.train_light, "words": words.train,
}


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="stage", choices=[*STAGES, "all"])
    parser.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of all stages' checkpoints")
    parser.add_argument("--plan", choices=PLANS, default="cpu", help="; ".join(f"{k}: {p.about}" for k, p in PLANS.items()))
    parser.add_argument("--warm", type=Path, help="exported checkpoint whose weights the stage starts from")
    parser.add_argument("--teacher", type=Path, help="words' sentence encoder: model.fp16.safetensors and tokenizer.json")
    parser.add_argument("--minutes", type=float, help="stop after this time instead of the plan's")
    parser.add_argument("--steps", type=int, help="stop after this many steps instead of the plan's")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=2, help="one is faster where the cores are shared")
    parser.add_argument("--loss", choices=ufogen.LOSSES, default="diffusion", help="ufogen's reconstruction loss")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="ufogen trains additions of this rank only")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.plan = PLANS[options.plan]
    return options


def run(options: argparse.Namespace, name: str) -> None:
    """One stage of the plan, within the limits that the options set in place of the plan's."""
    limits = {k: v for k in ("minutes", "steps") if (v := getattr(options, k)) is not None}
    stage = dataclasses.replace(options.plan.stages[name], **limits)
    torch.manual_seed(options.seed)
    STAGES[name](argparse.Namespace(**vars(options) | {"name": name, "stage": stage}))


def main(arguments=None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    for name in [s for s in STAGES if s != "words"] if options.name == "all" else [options.name]:
        run(options, name)


if __name__ == "__main__":
    main()
