"""Tensor names, sizes and one forward pass of every part of the model."""

import pytest
import torch

from golden import DECODER, TEXT, UNET, randomise
from mobilediffusion.config import (
    ALTERNATIVES, DecoderConfig, StableDiffusionConfig, TextConfig, UNetConfig, VaeConfig,
)
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.sd15 import StableDiffusionUNet
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.unet import UNet
from mobilediffusion.vae import Vae


def meta(model_class, config):
    """Build a full-size model without allocating its weights."""
    with torch.device("meta"):
        return model_class(config)


@pytest.mark.parametrize("model_class, config, tensors, parameters", [
    (UNet, UNetConfig(), 512, 386_857_032),
    (LightDecoder, DecoderConfig(), 114, 9_770_699),
    (Vae, VaeConfig(), 248, 83_709_419),
    (StableDiffusionUNet, StableDiffusionConfig(), 686, 859_520_964),
    (TextEncoder, TextConfig(), 196, 123_060_480),
])
def test_full_size_counts(model_class, config, tensors, parameters):
    state = meta(model_class, config).state_dict()
    assert len(state) == tensors
    assert sum(t.numel() for t in state.values()) == parameters


@pytest.mark.parametrize("name, tensors, parameters", [
    ("alt-1", 512, 387_395_400),
    ("alt-2", 576, 386_162_120),
    ("alt-4", 512, 386_469_192),
    ("alt-7", 502, 386_662_088),
])
def test_alternatives(name, tensors, parameters):
    state = meta(UNet, UNetConfig(**ALTERNATIVES[name])).state_dict()
    assert len(state) == tensors
    assert sum(t.numel() for t in state.values()) == parameters
    attends_itself = {n.split(".transformer_blocks")[0] for n in state if "attn1" in n}
    assert len(attends_itself) == (3 if name == "alt-7" else 5)
    if name == "alt-2":
        assert state["mid_block.resnets.0.units.0.pwconv1.weight"].shape == (3072, 640, 1, 1)
        assert state["mid_block.resnets.0.units.1.dwconv.weight"].shape == (1024, 1, 3, 3)
        assert state["mid_block.resnets.0.time_emb_proj.weight"].shape == (640, 512)
    if name == "alt-7":
        assert state["down_blocks.1.downsamplers.0.depthwise.weight"].shape == (640, 1, 3, 3)
        assert state["down_blocks.1.downsamplers.0.pointwise.weight"].shape == (640, 640, 1, 1)
        assert not any(n.startswith("up_blocks.0.attentions") for n in state)


def test_full_size_encoder_matches_autoencoder_kl():
    # 34.20 M: AutoencoderKL with 8 latent channels, encoder and quant_conv.
    vae = meta(Vae, VaeConfig())
    assert sum(p.numel() for part in (vae.encoder, vae.quant_conv) for p in part.parameters()) == 34_200_736


def test_unet_names():
    names = list(meta(UNet, UNetConfig()).state_dict())
    assert sum(n.endswith("attn1.to_q.weight") for n in names) == 15
    assert sum(n.endswith("attn2.to_q.weight") for n in names) == 18
    assert sum(n.endswith("attn1.to_kv.weight") for n in names) == 15
    assert not any(n.startswith(("down_blocks.0.attentions", "up_blocks.1.attentions")) for n in names)
    assert not any("attn1" in n for n in names if n.startswith(("down_blocks.1", "up_blocks.0")))
    for name in (
        "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.time_emb_proj.bias", "down_blocks.1.resnets.0.dwconv.weight",
        "down_blocks.1.downsamplers.0.conv.weight", "mid_block.attentions.4.transformer_blocks.2.ff.net.0.proj.weight",
        "mid_block.upsamplers.0.conv.bias", "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0.bias",
        "up_blocks.1.resnets.0.conv_shortcut.weight", "conv_norm_out.weight",
    ):
        assert name in names


def test_unet_forward_and_phi():
    unet = randomise(UNet(UNET), seed=1)
    inputs = torch.randn(2, 8, 8, 12), torch.tensor([981, 17]), torch.randn(2, 13, 32)
    with torch.no_grad():
        relu = unet(*inputs)
        unet.set_attention_phi("softmax")
        softmax = unet(*inputs)
    UNET.attention_phi = "relu"
    assert relu.shape == (2, 8, 8, 12)
    assert (relu - softmax).norm() > 2e-2 * relu.norm()


def test_unet_refuses_odd_sizes():
    with pytest.raises(ValueError, match="multiples of 4"):
        UNet(UNET)(torch.randn(1, 8, 6, 8), torch.tensor([1]), torch.randn(1, 13, 32))


def test_decoder_forward():
    assert LightDecoder(DECODER).decode(torch.randn(1, 8, 4, 8)).shape == (1, 3, 32, 64)


def test_text_encoder_is_causal():
    text = randomise(TextEncoder(TEXT), seed=3)
    ids = torch.randint(0, TEXT.vocab_size, (1, 77))
    changed = ids.clone()
    changed[0, 40] = (ids[0, 40] + 1) % TEXT.vocab_size
    with torch.no_grad():
        a, b = text(ids), text(changed)
    assert torch.equal(a[:, :40], b[:, :40]) and not torch.allclose(a[:, 40], b[:, 40])


@pytest.mark.parametrize("model, inputs", [
    (UNet(UNET), (torch.randn(1, 8, 8, 8), torch.tensor([500.0]), torch.randn(1, 13, 32))),
    (LightDecoder(DECODER), (torch.randn(1, 8, 4, 8),)),
    (TextEncoder(TEXT), (torch.arange(77)[None] % TEXT.vocab_size,)),
])
def test_networks_run_in_halves(model, inputs):
    randomise(model, seed=4)
    halved = [x.half() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        want, got = model(*inputs), model.half()(*halved)
    assert got.dtype == torch.float16 and (got - want).norm() < 2e-2 * want.norm()


def test_config_refuses_unknown_keys(tmp_path):
    UNET.save(tmp_path)
    assert UNetConfig.load(tmp_path) == UNET
    with pytest.raises(ValueError, match="unknown keys"):
        UNetConfig.from_dict(UNET.to_dict() | {"attention_heads": 3})
