"""Write the golden files: `python reference/golden.py [OUT]` (default tests/data/golden).

Each folder holds a small test configuration of one network: `config.json`, `model.safetensors` (seeded random weights
in float16; exactly these values are used) and one or more `*.safetensors` with inputs and the output of every block,
all in float32 and channels-last ([n, h, w, c] maps, [n, l, c] tokens). `samplers.json` and `noise.json` hold values of
the samplers and the noise in float64.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mobilediffusion import blocks, decoder, noise, text_encoder, vae
from mobilediffusion.config import ALTERNATIVES, DecoderConfig, StableDiffusionConfig, TextConfig, UNetConfig, VaeConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.samplers import Schedule
from mobilediffusion.sd15 import StableDiffusionUNet
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.unet import UNet
from mobilediffusion.vae import Vae

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"

# Small and not square, with unequal depths and widths that are not powers of two.
UNET = UNetConfig(
    sample_size=8, block_out_channels=[24, 40, 56], layers_mid=2, transformer_depth_mid=[2, 1],
    cross_attention_dim=32, attention_head_dim=8, time_embed_dim=40, time_proj_dim=24, norm_num_groups=8,
)
# Smaller, for the switches and the epsilons.
NARROW = {
    "sample_size": 8, "block_out_channels": [8, 16, 24], "layers_mid": 2, "transformer_depth_mid": [1, 2],
    "cross_attention_dim": 24, "attention_head_dim": 8, "time_embed_dim": 40, "time_proj_dim": 24, "norm_num_groups": 4,
}
NARROW_ALTERNATIVES = {
    name: UNetConfig(**NARROW | {k: v for k, v in switches.items() if k not in ("time_embed_dim", "transformer_depth_mid")})
    for name, switches in ALTERNATIVES.items() if name != "alt-7"
} | {
    "alt-7": UNetConfig(**NARROW | ALTERNATIVES["alt-7"] | {
        "time_embed_dim": 24, "layers_mid": 3, "transformer_depth_mid": [1, 2, 1],
        "self_attention": {"down1": False, "mid": [False, True, False], "up0": False},
    })
}
SD15_UNET = StableDiffusionConfig(
    sample_size=8, block_out_channels=[8, 16, 24, 24], layers_per_block=1, norm_num_groups=4, cross_attention_dim=24,
    attention_head_dim=2,
)
DECODER = DecoderConfig(
    block_out_channels=[8, 16, 24, 24], layers_per_up_block=[2, 1, 1, 1], norm_num_groups=4, scaling_factor=0.75,
)
VAE = VaeConfig(block_out_channels=[8, 16, 16, 24], layers_per_block=1, norm_num_groups=4, scaling_factor=0.75)
SD15_VAE = VaeConfig(
    latent_channels=4, block_out_channels=[8, 8, 16, 16], layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215,
)
TEXT = TextConfig(vocab_size=600, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)

RECORDED = (
    blocks.TimeEmbedding, blocks.ResidualBlock, blocks.SeparableBlock, blocks.DoubleSeparableBlock,
    blocks.TransformerBlock, blocks.TransformerStack, blocks.SeparableDownsample, decoder.VaeResidualBlock,
    vae.MidAttention, text_encoder.Embeddings, text_encoder.EncoderLayer,
)
# Layers that add to the residual stream, and layers that pass it on.
WRITES = ("conv_in", "conv2", "pwconv2", "proj_in", "proj_out", "to_out.0", "net.2", "out_proj", "fc2")
CARRIES = ("conv_shortcut", "samplers.0.conv")


def randomise(model: nn.Module, seed: int, stream: float = 1.0) -> nn.Module:
    """Set random weights of gain 1 per fan-in. Norms and biases are random too, so that no term is trivially 0 or 1.

    With `stream` below 1 the residual stream is scaled by it, so that a wrong epsilon of a norm shows. All values are
    representable in float16.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = lambda p: torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, p in module.named_parameters(recurse=False):
                if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                    value = 0.2 * normal(p) + (1.0 if name == "weight" else 0.0)
                elif isinstance(module, nn.Embedding):
                    value = stream * normal(p)
                else:
                    value = 0.2 * normal(p) if name == "bias" else normal(p) / p[0].numel() ** 0.5
                    if path.endswith(WRITES) or (name == "bias" and path.endswith(CARRIES)):
                        value = stream * value
                p.copy_(value.half().float())
    return model.eval()


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous()


def is_sampler_conv(name: str, module: nn.Module) -> bool:
    """Return whether a name is that of a convolution outside the blocks: at both ends, or in an up- or downsampler."""
    ends = ("conv_in", "conv_out", "quant_conv", "samplers.0.conv")
    return isinstance(module, nn.Conv2d) and name.endswith(ends)


@torch.no_grad()
def record(model: nn.Module, inputs: dict[str, torch.Tensor], run=None) -> dict[str, torch.Tensor]:
    """Run the model, or `run`, which calls it. Return the inputs and the outputs of all blocks by name."""
    golden = {f"input.{name}": channels_last(x) for name, x in inputs.items()}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, RECORDED) or is_sampler_conv(name, module):
            keep = lambda _, __, output, name=name: golden.__setitem__(f"output.{name}", channels_last(output).clone())
            hooks.append(module.register_forward_hook(keep))
    golden["output"] = channels_last((run or model)(*inputs.values())).clone()
    for hook in hooks:
        hook.remove()
    # The types that the runtime takes: int32 for ids, float32 for everything else.
    return {k: v.int() if k == "input.ids" else v.float() for k, v in golden.items()}


def decode(model: nn.Module):
    """Decode a scaled latent to a picture before clamping. Decoding includes the division by the scaling factor."""
    return lambda latent: model(latent / model.config.scaling_factor)


def encode(model: Vae):
    """Encode a picture to the scaled mean of the encoder's Gaussian."""
    return lambda picture: model.encode(picture)[0] * model.config.scaling_factor


def save_model(model: nn.Module, folder: Path, dtype=torch.float16) -> None:
    model.config.save(folder)
    save_file({name: t.to(dtype).contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")


class Inputs:
    """Return seeded random inputs."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def unet(self, config, height: int, width: int, timesteps: list[float], tokens: int = 13) -> dict[str, torch.Tensor]:
        n = len(timesteps)
        return {
            "latent": self.normal(n, config.in_channels, height, width), "timestep": torch.tensor(timesteps),
            "context": self.normal(n, tokens, config.cross_attention_dim),
        }

    def ids(self, config: TextConfig, n: int) -> dict[str, torch.Tensor]:
        shape = (n, config.max_position_embeddings)
        return {"ids": torch.randint(0, config.vocab_size, shape, generator=self.generator)}


def write_unets(out: Path) -> None:
    inputs = Inputs(7)
    unet = randomise(UNet(UNET), seed=1)
    pair = inputs.unet(UNET, 8, 12, [981.0, 17.0])
    zero = {"latent": torch.zeros(1, 8, 4, 8), "timestep": torch.tensor([0.0]), "context": inputs.normal(1, 13, 32)}
    unet.set_attention_phi("softmax")
    unet.config.save(out / "unet_softmax")  # with the weights of `unet`
    save_file(record(unet, pair), out / "unet_softmax" / "golden.safetensors")
    unet.set_attention_phi("relu")
    save_model(unet, out / "unet")
    save_file(record(unet, pair), out / "unet" / "golden.safetensors")
    save_file(record(unet, zero), out / "unet" / "zero.safetensors")

    small = {name: (UNet(config), 1.0) for name, config in NARROW_ALTERNATIVES.items()}
    small |= {"unet_flat": (UNet(UNetConfig(**NARROW)), 0.01), "sd15_unet": (StableDiffusionUNet(SD15_UNET), 0.01)}
    for seed, (name, (model, stream)) in enumerate(small.items(), start=10):
        randomise(model, seed, stream)
        save_model(model, out / name)
        save_file(record(model, inputs.unet(model.config, 8, 16, [999.0, 1.0])), out / name / "golden.safetensors")


def write_others(out: Path) -> None:
    inputs = Inputs(8)
    light = randomise(LightDecoder(DECODER), seed=2, stream=0.01)
    save_model(light, out / "decoder")
    save_file(record(light, {"latent": inputs.normal(1, 8, 4, 8)}, decode(light)), out / "decoder" / "golden.safetensors")

    text = randomise(TextEncoder(TEXT), seed=3, stream=0.01)
    save_model(text, out / "text_encoder")
    save_file(record(text, inputs.ids(TEXT, 2)), out / "text_encoder" / "golden.safetensors")

    for seed, (name, config) in enumerate({"vae": VAE, "sd15_vae": SD15_VAE}.items(), start=4):
        model = randomise(Vae(config), seed, stream=0.01)
        save_model(model, out / name)
        latent, picture = inputs.normal(1, config.latent_channels, 3, 4), inputs.normal(1, 3, 24, 40)
        save_file(record(model, {"latent": latent}, decode(model)), out / name / "decode.safetensors")
        save_file(record(model, {"image": picture}, encode(model)), out / name / "encode.safetensors")


def fake_eps(z: torch.Tensor, t: int) -> torch.Tensor:
    """Stand in for the network by a linear function that is easy to repeat in any language."""
    return 0.3 * z + 0.01 * (t / 1000)


def fresh_noise(step: int) -> torch.Tensor:
    """Return the fresh noise after the `step`-th step of a sampler: stream `step` of seed 5."""
    return torch.from_numpy(noise.normal(5, 8, step))


def ddim_trajectory(schedule: Schedule, start: torch.Tensor, steps: int, eta: float = 0.0) -> list[dict]:
    z, trajectory = start, []
    for k, t in enumerate(schedule.ddim_timesteps(steps), start=1):
        eps = fake_eps(z, t)
        z = schedule.ddim_step((z - schedule.s[t] * eps) / schedule.a[t], eps, t, steps, eta, fresh_noise(k))
        trajectory.append({"timestep": t, "latent": z.tolist()})
    return trajectory


def one_step_trajectory(schedule: Schedule, start: torch.Tensor, steps: int) -> list[dict]:
    """Return the predicted x0 of every step."""
    x, trajectory = start, []
    for k, t in enumerate(schedule.one_step_timesteps(steps)):
        if k:
            x = schedule.a[t] * x + schedule.s[t] * fresh_noise(k)
        x = (x - schedule.s[t] * fake_eps(x, t)) / schedule.a[t]
        trajectory.append({"timestep": t, "x0": x.tolist()})
    return trajectory


def write_samplers(out: Path) -> None:
    schedule = Schedule()
    abar = schedule.alpha_bar
    start = torch.tensor([-1.5, -0.75, -0.1, 0.0, 0.2, 0.6, 1.1, 2.3], dtype=torch.float64)
    ddim = {
        str(n): {"timesteps": schedule.ddim_timesteps(n), "alpha_bar": [abar[t].item() for t in schedule.ddim_timesteps(n)]}
        for n in (50, 10)
    }
    values = {
        "check": {f"alpha_bar_{t}": abar[t].item() for t in (0, 1, 499, 981, 999)}
        | {"a_999": schedule.a[999].item(), "s_999": schedule.s[999].item()},
        "ddim": ddim,
        "eps": "0.3 * z + 0.01 * (t / 1000)",
        "fresh": "after step k, counted from 1: the first 8 values of seed 5, stream k",
        "initial_latent": start.tolist(),
        "ddim_10_trajectory": ddim_trajectory(schedule, start, 10),
        "ddim_50_trajectory": ddim_trajectory(schedule, start, 50),
        "ddim_7_eta_0.7_trajectory": ddim_trajectory(schedule, start, 7, eta=0.7),
        "one_step_x0": one_step_trajectory(schedule, start, 1)[0]["x0"],
        "one_step_trajectories": {str(n): one_step_trajectory(schedule, start, n) for n in (2, 3, 4)},
    }
    (out / "samplers.json").write_text(json.dumps(values, indent=1) + "\n")


def write_noise(out: Path) -> None:
    words = noise.philox4x32(([0], [0], [0], [0]), (0, 0))[0]
    part = lambda seed, stream: noise.normal(seed, 1004, stream).tolist()
    sample = lambda values: {"first_8": values[:8], "values_1000_to_1003": values[1000:]}
    seeds = [{"seed": seed} | sample(part(seed, 0)) for seed in (0, 1, 2**40 + 7)]
    streams = [{"seed": 1, "stream": stream} | sample(part(1, stream)) for stream in (1, 3)]
    known = {"key": [0, 0], "counter": [0, 0, 0, 0], "words": [f"{int(w):08x}" for w in words]}
    (out / "noise.json").write_text(json.dumps({"philox4x32_10": known, "normal": seeds, "streams": streams}, indent=1) + "\n")


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT
    out.mkdir(parents=True, exist_ok=True)
    (out / "unet_softmax").mkdir(exist_ok=True)
    write_unets(out)
    write_others(out)
    write_samplers(out)
    write_noise(out)


if __name__ == "__main__":
    main()
