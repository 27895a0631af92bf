"""A few steps of every stage on toy data, and an exported checkpoint that draws."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import evaluate
import export
import train
from evaluation import metrics
from evaluation.table import ROWS
from mobilediffusion.config import DecoderConfig, TextConfig, UNetConfig, VaeConfig
from mobilediffusion.decoder import LightDecoder
from mobilediffusion.pipeline import Pipeline
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.tokenizer import DEFAULT_PATH, ClipTokenizer
from mobilediffusion.unet import UNet
from mobilediffusion.vae import Vae
from training import common, diffusion, lora, minilm, ufogen, vae, words
from training.plan import PLANS, Plan, Stage

needs_tokenizer = pytest.mark.skipif(not DEFAULT_PATH.exists(), reason="no model/data/clip/tokenizer.json")
STAGES = ("vae", "base", "relu", "pairs", "ufogen", "decoder")  # `words` has a test of its own
TOY = Plan(
    size=32, min_sets=0,
    unet=UNetConfig(
        sample_size=4, block_out_channels=[16, 32, 32], layers_mid=1, transformer_depth_mid=[1], cross_attention_dim=16,
        attention_head_dim=16, attention_phi="softmax", time_embed_dim=32, time_proj_dim=16, norm_num_groups=8,
        prediction_type="v_prediction",
    ),
    text=TextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1),
    vae=VaeConfig(block_out_channels=[8, 8, 16, 16], layers_per_block=1, norm_num_groups=4),
    decoder=DecoderConfig(block_out_channels=[8, 8, 16, 16], layers_per_up_block=[1, 1, 1, 1], norm_num_groups=4),
    stages={name: Stage(minutes=5.0, steps=3, batch=4, rate=(1e-3, 1e-4)) for name in (*STAGES, "words")},
    adversarial=0.5, pairs=8, teacher_steps=2,
)


@needs_tokenizer
def test_tokenizer():
    ids = ClipTokenizer()(["a photo of a cat", ""])
    assert ids.shape == (2, 77)
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids[1].tolist() == [49406] + [49407] * 76


@pytest.fixture
def data(tmp_path):
    """Write a data set of eight random pictures, three of them held out."""
    folder = tmp_path / "data"
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    split = np.array([0, 0, 0, 1, 0, 0, 1, 2])
    np.savez(folder / "pictures.npz", pictures=pictures, concept=np.arange(8), style=np.zeros(8, int), split=split, weight=np.ones(8))
    (folder / "captions.json").write_text(json.dumps([[f"thing {i}", f"a thing {i}"] for i in range(8)]))
    (folder / "names.json").write_text(json.dumps([[f"thing {i}"] for i in range(7)] + [["held out"]]))
    return folder


@pytest.fixture
def run(tmp_path, data, monkeypatch):
    """Return a function that runs one stage of the toy plan as the command does."""
    monkeypatch.setitem(PLANS, "cpu", TOY)

    def stage(name, *arguments, out="out"):
        train.main([name, "--data", str(data), "--out", str(tmp_path / out), "--no-bf16", "--threads", "1", *arguments])
        return tmp_path / out / name

    return stage


def curve(folder):
    with open(folder / "curve.csv", newline="") as f:
        return list(csv.DictReader(f))


@needs_tokenizer
def test_all_stages(run, data, tmp_path, monkeypatch):
    run("all")
    for name in STAGES:
        folder = tmp_path / "out" / name
        assert (folder / "checkpoint.pt").exists()
        assert all(np.isfinite(float(value)) for row in curve(folder) for value in row.values())
    out, folder = tmp_path / "out", tmp_path / "toy"
    noise, ids, latent = ufogen.load_pairs(out / "pairs", "cpu")
    assert ids.shape == (8, 77) and noise.shape == latent.shape == (8, 8, 4, 4)
    assert diffusion.load(out / "base", "cpu")[0].config.attention_phi == "softmax"
    assert diffusion.load(out / "ufogen", "cpu")[0].config.attention_phi == "relu"
    # The text encoder is trained in the stage `base` and does not change afterwards.
    after_base, after_ufogen = (diffusion.load(out / stage, "cpu")[1].state_dict() for stage in ("base", "ufogen"))
    assert all(torch.equal(after_base[k], after_ufogen[k]) for k in after_base)

    monkeypatch.setattr("sys.argv", ["export.py", "--out", str(out), "--folder", str(folder)])
    export.main()
    assert (folder / "unet_base" / "model.safetensors").exists()
    picture = Pipeline.load(folder)(["thing 1"], [0])
    assert picture.shape == (1, 3, 32, 32) and picture.isfinite().all()
    assert vae.load(out / "vae", "cpu").config.scaling_factor == Pipeline.load(folder).decoder.config.scaling_factor

    # The command that measures, with fewer candidates than the toy data has concepts.
    monkeypatch.setattr(metrics, "CANDIDATES", 4)
    monkeypatch.setattr(evaluate, "ROWS", {name: ROWS[name] for name in ("one-step", "one-step-full")})
    arguments = ["--data", str(data), "--out", str(out), "--checkpoint", str(folder), "--captions", "40", "--steps", "2"]
    for what in ("dual", "table"):
        monkeypatch.setattr("sys.argv", ["evaluate.py", what, *arguments])
        evaluate.main()
    found = json.loads((out / "table.json").read_text())
    assert list(found["rows"]) == ["real-train", "real-held", "one-step", "one-step-full"]
    assert all(0 <= row["r1"] <= row["r10"] <= 1 and row["frechet"] > 0 for row in found["rows"].values())

    # Another run can start from an exported checkpoint.
    started = run("base", "--warm", str(folder), "--steps", "1", out="out")
    assert torch.load(started / "checkpoint.pt", weights_only=True)["step"] == 3  # this stage was finished already


@needs_tokenizer
def test_a_stage_goes_on_where_it_stopped(run):
    run("vae")
    run("base")
    folder = run("base", "--steps", "5")
    assert [int(row["step"]) for row in curve(folder)] == [3, 5]
    before = common.load_checkpoint(folder)["unet"]
    after = common.load_checkpoint(run("base", "--steps", "5"))["unet"]
    assert all(torch.equal(before[k], after[k]) for k in before)


@needs_tokenizer
def test_pairs_that_go_on_are_others(run, monkeypatch):
    for stage in ("vae", "base"):
        run(stage, "--steps", "1")
    monkeypatch.setitem(PLANS, "cpu", dataclasses.replace(TOY, pairs=0))
    assert not run("pairs").exists(), "there are none to draw"
    monkeypatch.setitem(PLANS, "cpu", dataclasses.replace(TOY, pairs=16))
    run("pairs", "--steps", "2")
    noise, ids, latent = ufogen.load_pairs(run("pairs", "--steps", "4"), "cpu")
    assert len(noise) == len(ids) == len(latent) == 16
    assert len({tuple(one.flatten().tolist()) for one in noise}) == 16, "the same noise again"


def test_a_plan_of_another_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction_type: expected v_prediction.*found epsilon"):
        dataclasses.replace(TOY, unet=dataclasses.replace(TOY.unet, prediction_type="epsilon"))


@needs_tokenizer
@pytest.mark.parametrize("arguments", [("--loss", "diffusion"), ("--loss", "distill"), ("--loss", "ema"), ("--lora", "2")])
def test_ufogen_variants(run, monkeypatch, arguments):
    # As in the paper, there are no trajectories, and the discriminator takes part from the first step.
    monkeypatch.setitem(PLANS, "cpu", dataclasses.replace(TOY, pairs=0))
    for name in ("vae", "base", "relu"):
        run(name)
    folder = run("ufogen", *arguments)
    assert float(curve(folder)[-1]["trajectory"]) == 0.0
    assert float(curve(folder)[-1]["discriminator"]) > 0.0
    teacher, generator = (diffusion.load(folder.parent / stage, "cpu")[0].state_dict() for stage in ("relu", "ufogen"))
    changed = {name for name in teacher if not torch.equal(teacher[name], generator[name])}
    attention_only = all(name.removesuffix(".weight").endswith(lora.PROJECTIONS) for name in changed)
    assert changed and attention_only == ("--lora" in arguments)


def test_lora_starts_as_the_identity_and_merges():
    unet = UNet(TOY.unet)
    plain = {k: v.clone() for k, v in unet.state_dict().items()}
    lora.attach(unet, 2)
    merged = lora.merged(unet).state_dict()
    assert merged.keys() == plain.keys()
    assert all(torch.equal(merged[k], plain[k]) for k in plain)


def test_grown_decoder_is_the_light_one():
    light, full = LightDecoder(TOY.decoder), Vae(TOY.vae)
    vae.grow(full, light)
    z = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(full(z), light(z))
    wide = LightDecoder(dataclasses.replace(TOY.decoder, block_out_channels=[8, 16, 16, 16]))
    with pytest.raises(ValueError, match="does not fit"):
        vae.grow(full, wide)


def test_discriminator_losses_are_zero_sum_at_the_start():
    teacher = UNet(TOY.unet)
    discriminator = ufogen.discriminator_from(teacher)
    logit = discriminator(torch.randn(2, 8, 4, 4), torch.tensor([5, 900]), torch.randn(2, 77, 16))
    assert logit.shape == (2, 1, 4, 4) and not logit.any()
    assert ufogen.towards(torch.tensor([3.0]), 1.0) == ufogen.towards(torch.tensor([0.5]), 1.0)


def test_plans_are_of_the_promised_size():
    def parameters(model_class, config):
        with torch.device("meta"):
            return sum(p.numel() for p in model_class(config).parameters())

    for name, side in (("cpu", 64), ("gpu", 256)):
        plan = PLANS[name]
        assert plan.size == side and plan.unet.sample_size == plan.latent
        assert plan.unet.cross_attention_dim == plan.text.hidden_size
        parts = ((UNet, plan.unet), (TextEncoder, plan.text), (LightDecoder, plan.decoder), (Vae, plan.vae))
        assert 2 * sum(parameters(*part) for part in parts) < 64e6  # bytes in half precision


@needs_tokenizer
def test_words(run, monkeypatch):
    """Teacher that gives `kitten` and `thing 2` one embedding, and every other text its own."""

    class Teacher:
        def __init__(self, folder):
            pass

        def __call__(self, texts):
            return torch.tensor([[1.0, 0.0] if t in ("kitten", "thing 2") else [0.0, float(t == "thing 0")] for t in texts])

    run("vae")
    before = diffusion.load_text(run("base"), "cpu")
    monkeypatch.setattr(words, "MiniLm", Teacher)
    after = diffusion.load_text(run("words", "--teacher", "nowhere", "--steps", "100"), "cpu")
    say = lambda text, *prompts: text(ClipTokenizer()(list(prompts)))
    known = ("thing 2", "a thing 5", "thing", "")
    torch.testing.assert_close(say(after, *known), say(before, *known))
    apart = lambda text: (say(text, "kitten") - say(text, "thing 2")).square().mean()
    assert apart(after) < 0.5 * apart(before)
    with pytest.raises(ValueError, match="--teacher"):
        run("words")


def test_minilm_is_bert(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=11, hidden_size=24, num_hidden_layers=2, num_attention_heads=12, intermediate_size=32)
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    save_file(bert.state_dict(), tmp_path / "model.fp16.safetensors")
    vocabulary = {"[PAD]": 0, **{word: i for i, word in enumerate("abcdefghij", 1)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = minilm.MiniLm(tmp_path)(["a b c", "d e f g h"])
    ids, mask = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
    torch.testing.assert_close(found, torch.nn.functional.normalize(hidden.sum(1), dim=1), rtol=1e-4, atol=1e-5)
