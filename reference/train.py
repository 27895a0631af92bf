"""Train one stage: `python reference/train.py STAGE --data DATA --out OUT`.

    vae     encoder and light decoder
    base    UNet with softmax attention, together with the text encoder
    relu    the same loss after the switch to relu attention
    ufogen  adversarial fine-tuning to one step

Each stage keeps its checkpoint and its curve in OUT/STAGE, starts from the
stage before it, and goes on where it stopped when started again.
"""

import argparse
import importlib
from pathlib import Path

import torch

# Stage -> module and the minutes it takes to a usable result on two CPU cores.
STAGES = {"vae": ("vae", 25), "base": ("diffusion", 25), "relu": ("diffusion", 6), "ufogen": ("ufogen", 15)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of all stages' checkpoints")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this many steps")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    module, minutes = STAGES[options.stage]
    options.minutes = options.minutes or minutes
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    importlib.import_module(f"training.{module}").train(options)


if __name__ == "__main__":
    main()
