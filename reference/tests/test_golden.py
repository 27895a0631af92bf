"""The twin computes the values in the committed golden files, and a wrong epsilon would show in them."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from golden import DEFAULT_OUT, decode, encode, record
from mobilediffusion.blocks import Glu
from mobilediffusion.config import DecoderConfig, StableDiffusionConfig, TextConfig, UNetConfig, VaeConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.sd15 import StableDiffusionUNet
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.unet import UNet
from mobilediffusion.vae import Vae

CLASSES = {
    config.class_name: (model, config)
    for model, config in (
        (UNet, UNetConfig), (StableDiffusionUNet, StableDiffusionConfig), (LightDecoder, DecoderConfig), (Vae, VaeConfig),
        (TextEncoder, TextConfig),
    )
}
CASES = sorted(path for path in DEFAULT_OUT.glob("*/*.safetensors") if path.name != "model.safetensors")


def load(path):
    """Return the model of a case, the function that runs it, and its inputs in order."""
    class_name = json.loads((path.parent / "config.json").read_text()).get("_class_name", TextConfig.class_name)
    model_class, config_class = CLASSES[class_name]
    model = model_class(config_class.load(path.parent))
    weights = path.parent / "model.safetensors"
    weights = weights if weights.exists() else path.parents[1] / "unet" / "model.safetensors"
    model.load_state_dict({name: t.float() for name, t in load_file(weights).items()})
    golden = load_file(path)
    inputs = {}
    for name in ("latent", "timestep", "context", "ids", "image"):
        if f"input.{name}" in golden:
            x = golden[f"input.{name}"]
            inputs[name] = x.permute(0, 3, 1, 2) if x.dim() == 4 else x.long() if name == "ids" else x
    run = encode(model) if "image" in inputs else decode(model) if isinstance(model, (LightDecoder, Vae)) else None
    return model.eval(), inputs, run, {name: t for name, t in golden.items() if name.startswith("output")}


def errors(model, inputs, run, golden) -> dict[str, float]:
    got = record(model, inputs, run)
    assert {name for name in got if name.startswith("output")} == set(golden)
    return {name: ((got[name] - want).norm() / want.norm()).item() for name, want in golden.items()}


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_twin_gives_the_golden_outputs(path):
    # Processors add up in different orders.
    assert max(errors(*load(path)).values()) < 1e-5


@pytest.mark.parametrize("case, norm, eps", [
    ("unet/zero", nn.GroupNorm, 1e-5), ("unet_flat/golden", nn.GroupNorm, 1e-5), ("unet_flat/golden", nn.GroupNorm, 1e-6),
    ("unet_flat/golden", nn.LayerNorm, 1e-5), ("sd15_unet/golden", nn.GroupNorm, 1e-5),
    ("sd15_unet/golden", nn.GroupNorm, 1e-6), ("sd15_unet/golden", nn.LayerNorm, 1e-5),
    ("text_encoder/golden", nn.LayerNorm, 1e-5), ("decoder/golden", nn.GroupNorm, 1e-6),
    ("vae/encode", nn.GroupNorm, 1e-6), ("vae/decode", nn.GroupNorm, 1e-6), ("sd15_vae/decode", nn.GroupNorm, 1e-6),
])
def test_a_wrong_epsilon_shows(case, norm, eps):
    model, *rest = load(DEFAULT_OUT / f"{case}.safetensors")
    chosen = [module for module in model.modules() if isinstance(module, norm) and module.eps == eps]
    for module in chosen:
        module.eps = eps / 10
    assert chosen and max(errors(model, *rest).values()) > 8e-4


def swap_halves(parameter, dim: int) -> None:
    first, second = parameter.data.chunk(2, dim)
    parameter.data = torch.cat([second, first], dim)


def swap_gates(model) -> None:
    for module in model.modules():
        if isinstance(module, Glu):
            swap_halves(module.proj.weight, 0)
            swap_halves(module.proj.bias, 0)


def swap_waves(model) -> None:
    swap_halves(model.time_embedding.linear_1.weight, 1)


def swap_skips(model) -> None:
    """Put the skip of the last block before the hidden map. Both have the same width there."""
    block = model.up_blocks[1].resnets[1]
    swap_halves(block.conv_shortcut.weight, 1)
    swap_halves(block.conv1.weight, 1)
    swap_halves(block.norm1.weight, 0)
    swap_halves(block.norm1.bias, 0)


def scores_of_another_length(model) -> None:
    """Let relu attention divide by a wrong number of keys."""
    for module in model.modules():
        if hasattr(module, "to_q"):
            module.to_q.weight.data *= 13


def pad_below(model) -> None:
    conv = model.down_blocks[0].downsamplers[0].conv
    conv.padding = 0
    conv.register_forward_pre_hook(lambda _, inputs: F.pad(inputs[0], (0, 1, 0, 1)))


def softmax(model) -> None:
    model.set_attention_phi("softmax")


@pytest.mark.parametrize("mistake", [
    swap_gates, swap_waves, swap_skips, scores_of_another_length, pad_below, softmax,
])
def test_a_mistake_shows(mistake):
    model, *rest = load(DEFAULT_OUT / "unet" / "golden.safetensors")
    mistake(model)
    assert errors(model, *rest)["output"] > 1e-2


def test_gelu_for_silu_shows(monkeypatch):
    case = load(DEFAULT_OUT / "unet" / "golden.safetensors")
    monkeypatch.setattr(F, "silu", F.gelu)
    assert errors(*case)["output"] > 1e-2
