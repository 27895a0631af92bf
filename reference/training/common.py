"""Parts shared by all stages: data, time limit, log and checkpoints of a run, averaged weights."""

import copy
import csv
import json
import math
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

TRAIN, HELD_STYLE, HELD_CONCEPT = 0, 1, 2  # as data.py writes them


class Pictures:
    """Splits of the data in memory: pictures [n, 3, h, w] in -1..1, and the captions of each."""

    def __init__(self, folder, device, splits=(TRAIN,)):
        folder = Path(folder)
        with np.load(folder / "pictures.npz") as f:
            kept = np.isin(f["split"], splits)
            pixels, self.concept, self.style = f["pictures"][kept], f["concept"][kept], f["style"][kept]
            # Concepts of the example prompts are drawn twice as often.
            self.weight = torch.from_numpy(f["weight"][kept])
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
        captions = json.loads((folder / "captions.json").read_text())
        self.captions = [captions[i] for i in np.flatnonzero(kept)]

    def __len__(self):
        return len(self.pixels)

    def batch(self, index) -> torch.Tensor:
        """Return the pictures of `index` (a slice or a tensor) as floats in -1..1."""
        return self.pixels[index].float() / 127.5 - 1

    def batches(self, size: int = 64):
        """Yield all pictures in order, in batches."""
        return (self.batch(slice(i, i + size)) for i in range(0, len(self), size))


class Run:
    """One run of a stage: its folder with `curve.csv` and `checkpoint.pt`, and its limits.

    `minutes` and `steps` both limit the run. The learning rate follows the
    nearer limit, so that a run limited by time is annealed to its end too.
    """

    def __init__(self, folder, minutes: float, steps: int, columns: list[str]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limit_seconds, self.limit_steps = minutes * 60, steps
        self.step, self.seconds_before, self.started = 0, 0.0, time.time()
        self.columns, self.sums, self.count = columns, {}, 0

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.time() - self.started

    @property
    def progress(self) -> float:
        """Progress from 0 at the start to 1 at the end. A limit of zero gives 1."""
        if self.limit_seconds <= 0 or self.limit_steps <= 0:
            return 1.0
        return min(1.0, max(self.seconds / self.limit_seconds, self.step / self.limit_steps))

    def cosine(self, first: float, last: float, warmup: int = 50) -> float:
        """Return the learning rate at the present progress: a cosine from `first` to `last` after a linear warm-up."""
        rate = last + (first - last) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return rate * min(1.0, (self.step + 1) / warmup)

    def log(self, every: int = 50, **values: float) -> None:
        """Average the values over `every` steps, then write one line."""
        self.step += 1
        self.count += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(torch.as_tensor(value).detach())
        if self.step % every and self.progress < 1:
            return
        row = {"step": self.step, "seconds": round(self.seconds, 1)}
        row |= {k: f"{self.sums[k] / self.count:.5g}" for k in self.columns}
        new = not (self.folder / "curve.csv").exists()
        with open(self.folder / "curve.csv", "a", newline="") as f:
            writer = csv.DictWriter(f, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(*(f"{k} {v}" for k, v in row.items()), flush=True)
        self.sums, self.count = {}, 0

    def save(self, **state) -> None:
        """Save a checkpoint: the states of modules and optimisers, and other values unchanged, by name."""
        state = {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in state.items()}
        part = self.folder / "checkpoint.part"
        torch.save(state | {"step": self.step, "seconds": self.seconds, "random": random_state()}, part)
        part.rename(self.folder / "checkpoint.pt")  # so that a checkpoint is never half-written

    def resume(self, **state) -> bool:
        """Load the checkpoint that `save` wrote. Return False if there is none."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return False
        saved = load_checkpoint(self.folder)
        for key, value in state.items():
            value.load_state_dict(saved[key])
        self.step, self.seconds_before = saved["step"], saved["seconds"]
        set_random_state(saved.get("random", []))
        return True


def random_state() -> list[torch.Tensor]:
    """Return the states of the random generators, the CPU's first, so that a resumed run draws new numbers."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(states: list[torch.Tensor]) -> None:
    if states:
        torch.set_rng_state(states[0])
    for device, state in enumerate(states[1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)


@contextmanager
def precision(options):
    """Enable bfloat16 autocast if the options ask for it.

    On a CPU, compute attention by plain products: sequences are short.
    """
    attention = sdpa_kernel(SDPBackend.MATH) if options.device == "cpu" else nullcontext()
    with attention, torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
        yield


def load_checkpoint(folder) -> dict:
    return torch.load(Path(folder) / "checkpoint.pt", map_location="cpu", weights_only=True)


def frozen(module: torch.nn.Module) -> torch.nn.Module:
    return module.eval().requires_grad_(False)


def averaged(module: torch.nn.Module) -> torch.nn.Module:
    """Return a frozen copy of a module, to be updated by `follow`."""
    return frozen(copy.deepcopy(module))


@torch.no_grad()
def follow(average: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    """Update the exponential moving average of a module's weights."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
