"""Full-size networks of the twin in `reference/` for the scripts of peers. Needs only PyTorch.

A job is NETWORK:SIZE:BATCH:DTYPE, as in unet:512:1:f16.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference"))
from mobilediffusion.config import DecoderConfig, TextConfig, UNetConfig  # noqa: E402
from mobilediffusion.decoder import LightDecoder  # noqa: E402
from mobilediffusion.text_encoder import TextEncoder  # noqa: E402
from mobilediffusion.unet import UNet  # noqa: E402

TOKENS = 77
DTYPES = {"f32": torch.float32, "f16": torch.float16}
# Largest relative L2 error against the twin in f32 of a peer that is timed.
BOUNDS = {"f32": 1e-4, "f16": 2e-2}
# Runs if there is time for them, and the most runs within a second, as in `mobilediffusion bench --plan`.
RUNS, MOST = 20, 200
SECONDS = 3.0
# Seconds from which a run is not repeated, as on software drivers.
SLOW = 10.0


class Job:
    """Job: a network with random weights and inputs on a device, in f32 until it is converted."""

    def __init__(self, text, device="cpu"):
        self.text = text
        self.network, size, batch, self.dtype = text.split(":")
        self.size, self.batch = int(size), int(batch)
        torch.manual_seed(1)
        # Weights get values once, and on the device: PyTorch's own would take a CPU seconds for hundreds of millions.
        with torch.device("meta"):
            self.model = self.built()
        self.model.to_empty(device=device)
        randomise(self.model.eval())
        with torch.device(device):
            self.inputs = self.random_inputs(self.model.config)

    def built(self):
        if self.network == "unet":
            return UNet(UNetConfig())
        return LightDecoder(DecoderConfig()) if self.network == "decoder" else TextEncoder(TextConfig())

    def random_inputs(self, config):
        latent = lambda channels: torch.randn(self.batch, channels, self.size // 8, self.size // 8)
        if self.network == "unet":
            context = torch.randn(self.batch, TOKENS, config.cross_attention_dim)
            return [latent(config.in_channels), torch.full((self.batch,), 500.0), context]
        if self.network == "decoder":
            return [latent(config.latent_channels)]
        return [torch.arange(1, TOKENS + 1)[None].repeat(self.batch, 1)]

    def convert(self):
        """Convert model and inputs to the job's type."""
        dtype = DTYPES[self.dtype]
        self.model.to(dtype)
        self.inputs = [x.to(dtype) if x.is_floating_point() else x for x in self.inputs]

    def has_maps(self):
        return any(x.dim() == 4 for x in self.inputs)

    def lay_out(self, layout):
        """Store weights of convolutions and feature maps in a memory format of PyTorch."""
        self.model.to(memory_format=layout)
        self.inputs = [x.to(memory_format=layout) if x.dim() == 4 else x for x in self.inputs]


@torch.no_grad()
def randomise(model):
    """Set weights of gain 1 per fan-in, and small biases. Norms are the identity.

    Layers that training starts at zero get them too, since zeros would hide errors.
    """
    for module in model.modules():
        is_norm = isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm))
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm:
                parameter.fill_(float(name == "weight"))
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.02)


def relative_l2(got, want):
    return ((got.double().cpu() - want.double().cpu()).norm() / want.double().cpu().norm()).item()


def checked(job, got, want, bounds=BOUNDS):
    """Raise an error if a result is too far from the twin's in f32. Return its relative L2 error."""
    error = relative_l2(got, want)
    if not error <= bounds[job.dtype]:
        raise ValueError(f"wrong: relative L2 of {error:.1e} against the twin in f32")
    return error


def seconds_of(run, more):
    """Return the seconds of each run. It is repeated while `more(seconds so far)`."""
    seconds = []
    while more(seconds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def timed(run, warm_up=0.0):
    """Return median and least seconds of several runs, and their number, after `warm_up` seconds of them, or one.

    If the first run is slow, its time is returned. It is not the very first run, because outputs were checked before.
    """
    begin = time.perf_counter()
    passed = lambda: time.perf_counter() - begin
    seconds = seconds_of(run, lambda done: not done or done[0] <= SLOW and passed() < warm_up)
    if seconds[0] <= SLOW:
        begin = time.perf_counter()
        enough = lambda count: count >= (MOST if passed() < 1 else RUNS if passed() < SECONDS else 3)
        seconds = seconds_of(run, lambda done: not enough(len(done)))
    return {"seconds": statistics.median(seconds), "min_seconds": min(seconds), "runs": len(seconds)}


def one_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
