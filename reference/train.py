"""Train one stage: `python reference/train.py STAGE --data DATA --out OUT`.

    vae      train the VAE's encoder and full decoder
    base     train the UNet with softmax attention, together with the text encoder
    relu     go on training the UNet with relu attention
    pairs    record which latents the base model draws from which noise
    ufogen   fine-tune the UNet adversarially to one step
    decoder  train the light decoder for the frozen encoder
    words    teach the text encoder words outside the captions, from a frozen sentence encoder; optional
    all      run every stage but `words`, one after the other

Each stage keeps its checkpoint and its curve in OUT/STAGE, starts from the
stage before it, and continues where it stopped when started again. `--plan`
sets all sizes and times. `--warm CHECKPOINT` starts a stage from the same part
of an exported checkpoint instead.
"""

import argparse
import copy
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
    parser.add_argument("--teacher", type=Path, help="folder of the sentence encoder for `words`: model.fp16.safetensors and tokenizer.json")
    parser.add_argument("--minutes", type=float, help="stop after this time instead of the plan's")
    parser.add_argument("--steps", type=int, help="stop after this many steps instead of the plan's")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="compute in bfloat16 by autocast")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; 1 is faster where other work shares the cores")
    parser.add_argument("--loss", choices=ufogen.LOSSES, default="diffusion", help="reconstruction loss of ufogen")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="let ufogen train only low-rank additions to attention, of this rank")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.plan = PLANS[options.plan]
    return options


def run(options: argparse.Namespace, name: str) -> None:
    """Run one stage of the plan. `--minutes` and `--steps` replace the plan's limits."""
    limits = {k: v for k in ("minutes", "steps") if (v := getattr(options, k)) is not None}
    stage = dataclasses.replace(options.plan.stages[name], **limits)
    torch.manual_seed(options.seed)
    # Models keep their configurations and change them, so each stage gets its own copy of the plan.
    STAGES[name](argparse.Namespace(**vars(options) | {"name": name, "stage": stage, "plan": copy.deepcopy(options.plan)}))


def main(arguments=None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    for name in [s for s in STAGES if s != "words"] if options.name == "all" else [options.name]:
        run(options, name)


if __name__ == "__main__":
    main()
