"""Write the golden files: `python reference/golden.py [OUT]` (default tests/data/golden).

For a small test configuration of each part: `config.json`, `model.safetensors`
(random weights, seeded) and `golden.safetensors` with inputs and the output of
every block, all float32 and channels-last ([n, h, w, c] maps, [n, l, c] tokens).
Besides: `samplers.json` and `noise.json`, in float64.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mobilediffusion import blocks, decoder, noise, text_encoder
from mobilediffusion.config import DecoderConfig, TextConfig, UNetConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.samplers import Schedule
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.unet import UNet

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"

# Small, not square, with widths that are no powers of two and unequal depths.
UNET = UNetConfig(
    sample_size=8, block_out_channels=[32, 48, 80], layers_mid=2, transformer_depth_mid=[2, 1],
    cross_attention_dim=32, attention_head_dim=16, time_embed_dim=40, time_proj_dim=24, norm_num_groups=8,
)
DECODER = DecoderConfig(
    block_out_channels=[16, 32, 32, 32], layers_per_up_block=[2, 1, 1, 1], norm_num_groups=8, scaling_factor=0.75,
)
TEXT = TextConfig(vocab_size=600, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)

RECORDED = (
    blocks.TimeEmbedding, blocks.ResidualBlock, blocks.SeparableBlock, blocks.TransformerBlock, blocks.TransformerStack,
    decoder.VaeResidualBlock, text_encoder.Embeddings, text_encoder.EncoderLayer,
)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Weights of gain 1 per fan-in; norms and biases random too, so that no term is trivially 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda p: torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                    p.copy_(0.2 * normal(p) + (1.0 if name == "weight" else 0.0))
                elif isinstance(module, nn.Embedding):
                    p.copy_(normal(p))
                elif name == "bias":
                    p.copy_(0.2 * normal(p))
                else:
                    p.copy_(normal(p) / p[0].numel() ** 0.5)
    return model.eval()


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous()


def is_sampler_conv(name: str, module: nn.Module) -> bool:
    """Convolutions outside of blocks: at both ends and in the up- and downsamplers."""
    ends = ("conv_in", "conv_out", "post_quant_conv", "samplers.0.conv")
    return isinstance(module, nn.Conv2d) and name.endswith(ends)


@torch.no_grad()
def record(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run the model; inputs and all blocks' outputs by name."""
    golden = {f"input.{name}": channels_last(x) for name, x in inputs.items()}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, RECORDED) or is_sampler_conv(name, module):
            keep = lambda _, __, output, name=name: golden.__setitem__(f"output.{name}", channels_last(output).clone())
            hooks.append(module.register_forward_hook(keep))
    golden["output"] = channels_last(model(*inputs.values())).clone()
    for hook in hooks:
        hook.remove()
    # Positions, steps and ids as the runtime takes them: int32 ids, float32 everything else.
    return {k: v.int() if k == "input.ids" else v.float() for k, v in golden.items()}


def write_models(out: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    normal = lambda *shape: torch.randn(*shape, generator=generator)

    unet = randomise(UNet(UNET), seed=1)
    inputs = {"latent": normal(2, 8, 8, 12), "timestep": torch.tensor([981.0, 17.0]), "context": normal(2, 13, 32)}
    for phi, folder in (("relu", out / "unet"), ("softmax", out / "unet_softmax")):
        unet.set_attention_phi(phi)
        unet.config.save(folder)
        save_file(record(unet, inputs), folder / "golden.safetensors")
    save_file(unet.state_dict(), out / "unet" / "model.safetensors")  # serves both phi

    light = randomise(LightDecoder(DECODER), seed=2)
    light.config.save(out / "decoder")
    save_file(light.state_dict(), out / "decoder" / "model.safetensors")
    # `input.latent` is what the UNet works on; the division by the scaling factor belongs to decoding.
    latent = normal(1, 8, 4, 8)
    golden = record(light, {"latent": latent / DECODER.scaling_factor}) | {"input.latent": channels_last(latent)}
    save_file(golden, out / "decoder" / "golden.safetensors")

    text = randomise(TextEncoder(TEXT), seed=3)
    text.config.save(out / "text_encoder")
    save_file(text.state_dict(), out / "text_encoder" / "model.safetensors")
    ids = torch.randint(0, TEXT.vocab_size, (2, TEXT.max_position_embeddings), generator=generator)
    save_file(record(text, {"ids": ids}), out / "text_encoder" / "golden.safetensors")


def fake_eps(z: torch.Tensor, t: int) -> torch.Tensor:
    """A linear stand-in for the network, easy to repeat in any language."""
    return 0.3 * z + 0.01 * (t / 1000)


def write_samplers(out: Path) -> None:
    schedule = Schedule()
    abar = schedule.alpha_bar
    start = torch.tensor([-1.5, -0.75, -0.1, 0.0, 0.2, 0.6, 1.1, 2.3], dtype=torch.float64)
    z, trajectory = start, []
    for t in schedule.ddim_timesteps(10):
        eps = fake_eps(z, t)
        z = schedule.ddim_step((z - schedule.s[t] * eps) / schedule.a[t], eps, t, 10)
        trajectory.append({"timestep": t, "latent": z.tolist()})
    one = (start - schedule.s[999] * fake_eps(start, 999)) / schedule.a[999]
    ddim = {
        str(n): {"timesteps": schedule.ddim_timesteps(n), "alpha_bar": [abar[t].item() for t in schedule.ddim_timesteps(n)]}
        for n in (50, 10)
    }
    values = {
        "check": {f"alpha_bar_{t}": abar[t].item() for t in (0, 1, 499, 981, 999)}
        | {"a_999": schedule.a[999].item(), "s_999": schedule.s[999].item()},
        "ddim": ddim,
        "eps": "0.3 * z + 0.01 * (t / 1000)",
        "initial_latent": start.tolist(),
        "ddim_10_trajectory": trajectory,
        "one_step_x0": one.tolist(),
    }
    (out / "samplers.json").write_text(json.dumps(values, indent=1) + "\n")


def write_noise(out: Path) -> None:
    words = noise.philox4x32(([0], [0], [0], [0]), (0, 0))[0]
    seeds = []
    for seed in (0, 1, 2**40 + 7):
        values = noise.normal(seed, 1004).tolist()
        seeds.append({"seed": seed, "first_8": values[:8], "values_1000_to_1003": values[1000:]})
    known = {"key": [0, 0], "counter": [0, 0, 0, 0], "words": [f"{int(w):08x}" for w in words]}
    (out / "noise.json").write_text(json.dumps({"philox4x32_10": known, "normal": seeds}, indent=1) + "\n")


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT
    for folder in ("unet", "unet_softmax", "decoder", "text_encoder"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_models(out)
    write_samplers(out)
    write_noise(out)


if __name__ == "__main__":
    main()
