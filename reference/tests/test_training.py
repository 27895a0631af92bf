"""A few steps of every stage on toy data, and that the exported checkpoint draws."""

from argparse import Namespace

import numpy as np
import pytest
import torch

import export
from mobilediffusion.pipeline import Pipeline
from mobilediffusion.tokenizer import DEFAULT_PATH, ClipTokenizer
from training import diffusion, ufogen, vae

needs_tokenizer = pytest.mark.skipif(not DEFAULT_PATH.exists(), reason="no model/data/clip/tokenizer.json")


@needs_tokenizer
def test_tokenizer():
    ids = ClipTokenizer()(["a photo of a cat", ""])
    assert ids.shape == (2, 77)
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids[1].tolist() == [49406] + [49407] * 76


def options(out, data, stage, steps):
    return Namespace(stage=stage, data=data, out=out, minutes=5.0, steps=steps, device="cpu", bf16=False)


@needs_tokenizer
def test_all_stages(tmp_path, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    pictures = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    np.savez(data / "pictures.npz", pictures=pictures, concept=np.arange(6), style=np.zeros(6, dtype=np.int64))
    for module in (vae, diffusion, ufogen):
        monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(ufogen, "GAN_FROM", 0.4)
    monkeypatch.setattr(ufogen, "TEACHER_STEPS", 2)

    for stage, module in (("vae", vae), ("base", diffusion), ("relu", diffusion), ("ufogen", ufogen)):
        module.train(options(out, data, stage, steps=3))
        assert (out / stage / "checkpoint.pt").exists() and (out / stage / "curve.csv").exists()
    assert diffusion.load(out / "base", "cpu")[0].config.attention_phi == "softmax"
    assert diffusion.load(out / "ufogen", "cpu")[0].config.attention_phi == "relu"
    # A finished stage goes on where it stopped.
    diffusion.train(options(out, data, "relu", steps=4))
    assert torch.load(out / "relu" / "checkpoint.pt", weights_only=True)["step"] == 4

    folder = tmp_path / "tiny"
    monkeypatch.setattr("sys.argv", ["export.py", "--out", str(out), "--folder", str(folder)])
    export.main()
    assert (folder / "unet_base" / "model.safetensors").exists()
    picture = Pipeline.load(folder)(["red apple"], [0])
    assert picture.shape == (1, 3, 64, 64) and picture.isfinite().all()
