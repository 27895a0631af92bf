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
RUNS, SECONDS = 20, 3.0
# Seconds from which a run is not repeated, as on software drivers.
SLOW = 10.0


class Job:
    """Job: a network with random weights and inputs, in f32 on the CPU."""

    def __init__(self, text):
        self.text = text
        self.network, size, batch, self.dtype = text.split(":")
        self.size, self.batch = int(size), int(batch)
        torch.manual_seed(1)
        latent = lambda channels: torch.randn(self.batch, channels, self.size // 8, self.size // 8)
        if self.network == "unet":
            config = UNetConfig()
            self.model = UNet(config)
            context = torch.randn(self.batch, TOKENS, config.cross_attention_dim)
            self.inputs = [latent(config.in_channels), torch.full((self.batch,), 500.0), context]
        elif self.network == "decoder":
            config = DecoderConfig()
            self.model, self.inputs = LightDecoder(config), [latent(config.latent_channels)]
        else:
            config = TextConfig()
            self.model, self.inputs = TextEncoder(config), [torch.arange(1, TOKENS + 1)[None].repeat(self.batch, 1)]
        randomise(self.model.eval())

    def converted(self, device, last):
        """Return model and inputs in the job's type on a device, with channels innermost if `last`."""
        dtype = DTYPES[self.dtype]
        convert = lambda x: x.to(device, dtype) if x.is_floating_point() else x.to(device)
        inputs = [convert(x) for x in self.inputs]
        model = self.model.to(device, dtype)
        if last:
            model = model.to(memory_format=torch.channels_last)
            inputs = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
        return model, inputs


@torch.no_grad()
def randomise(model):
    """Set weights of gain 1 per fan-in.

    Layers that training starts at zero get them too, since zeros would hide errors.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)


def relative_l2(got, want):
    return ((got.double().cpu() - want.double().cpu()).norm() / want.double().cpu().norm()).item()


def checked(job, got, want, bounds=BOUNDS):
    """Raise an error if a result is too far from the twin's in f32. Return its relative L2 error."""
    error = relative_l2(got, want)
    if not error <= bounds[job.dtype]:
        raise ValueError(f"wrong: relative L2 of {error:.1e} against the twin in f32")
    return error


def median_of(run, warm_up=0.0):
    """Return the median seconds of several runs after one, or `warm_up` seconds of them, to warm up.

    If the first run is slow, its time is returned. It is not the very first run, because outputs were checked before.
    """
    begin, seconds = time.perf_counter(), []
    run()
    first = time.perf_counter() - begin
    if first > SLOW:
        return first
    while time.perf_counter() - begin < warm_up:
        run()
    begin = time.perf_counter()
    while len(seconds) < 3 or (len(seconds) < RUNS and time.perf_counter() - begin < SECONDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def one_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
