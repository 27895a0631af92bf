"""Compare the twin, and optionally the runtime, with transformers and diffusers: `python reference/parity.py`.

    pip install -r reference/requirements-parity.txt
    python reference/parity.py                                              the twin, small networks and samplers
    python reference/parity.py --full                                       and the full-size networks (6 GB, minutes)
    python reference/parity.py --ufogen scheduling_ufogen.py                and diffusers' community scheduler
    python reference/parity.py --runtime target/release/mobilediffusion     and the runtime, on the CPU device

Both sides get the same random weights, and every line shows the relative L2 error of one output. The script fails if
one is above 1e-4. For the runtime it writes checkpoint folders with weights and outputs of the independent module,
which `mobilediffusion golden` compares. `scheduling_ufogen.py` is in diffusers' repository under `examples/community`.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import golden
import tokenizer_cases
from mobilediffusion.config import StableDiffusionConfig, TextConfig, VaeConfig
from mobilediffusion.noise import normal
from mobilediffusion.samplers import Schedule, ddim, one_step
from mobilediffusion.sd15 import StableDiffusionUNet
from mobilediffusion.text_encoder import TextEncoder
from mobilediffusion.tokenizer import ClipTokenizer
from mobilediffusion.vae import Vae
from plain_bpe import PlainBpe

BOUND = 1e-4
# Scale of the residual stream under the random weights, small so that a wrong epsilon of a norm shows.
STREAM = 0.01


class Report:
    """Report of the comparisons, and whether all of them were within the bound."""

    def __init__(self):
        self.failed = False

    def line(self, what: str, error: float, bound: float = BOUND) -> None:
        ok = error <= bound  # NaN is not
        self.failed |= not ok
        print(f"{what:<64} {error:9.2e}{'' if ok else f'   above {bound:.0e}'}", flush=True)


def relative_l2(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


# Builders of the independent modules from the twin's configurations. Each returns the module and a function that runs
# it.


def clip_text(c: TextConfig):
    from transformers import CLIPTextConfig, CLIPTextModel

    keys = c.to_dict() | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = CLIPTextModel(CLIPTextConfig(**keys))
    return model, lambda ids: model(ids).last_hidden_state


def diffusers_unet(c: StableDiffusionConfig):
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(**{k: v for k, v in c.to_dict().items() if k != "_class_name"})
    return model, lambda latent, timestep, context: model(latent, timestep, context).sample


def diffusers_vae(c: VaeConfig):
    from diffusers import AutoencoderKL

    return AutoencoderKL(**{k: v for k, v in c.to_dict().items() if k != "_class_name"})


def diffusers_decoder(c: VaeConfig):
    model = diffusers_vae(c)
    return model, lambda latent: model.decode(latent / c.scaling_factor).sample


def diffusers_encoder(c: VaeConfig):
    model = diffusers_vae(c)
    return model, lambda image: model.encode(image).latent_dist.mode() * c.scaling_factor


def twin_of(model_class, config, state: dict):
    """Return the twin with the weights of the independent module. Their names differ at most by CLIP's prefix."""
    with torch.device("meta"):
        twin = model_class(config)
    prefix = "text_model." if model_class is TextEncoder else ""
    twin.load_state_dict({prefix + name.removeprefix(prefix): t for name, t in state.items()}, assign=True)
    return twin.eval()


SMALL_TEXT = golden.TEXT
SD15_VAE = VaeConfig(latent_channels=4, scaling_factor=0.18215)


def networks(full: bool):
    """Return rows of name, twin's class, configuration, builder of the independent module, run function and inputs."""
    inputs = golden.Inputs(11)
    image = lambda *size: {"image": inputs.normal(1, 3, *size)}
    latent = lambda channels, *size: {"latent": inputs.normal(1, channels, *size)}
    yield "text encoder, small", TextEncoder, SMALL_TEXT, clip_text, None, inputs.ids(SMALL_TEXT, 2)
    yield "sd15 UNet, small", StableDiffusionUNet, golden.SD15_UNET, diffusers_unet, None, inputs.unet(
        golden.SD15_UNET, 8, 16, [999.0, 1.0])
    for name, config in (("VAE", golden.VAE), ("sd15 VAE", golden.SD15_VAE)):
        yield f"{name} encoder, small", Vae, config, diffusers_encoder, golden.encode, image(24, 40)
        yield f"{name} decoder, small", Vae, config, diffusers_decoder, golden.decode, latent(config.latent_channels, 3, 5)
    if full:
        yield "text encoder, full size", TextEncoder, TextConfig(), clip_text, None, inputs.ids(TextConfig(), 1)
        for name, config in (("VAE", VaeConfig(scaling_factor=0.75)), ("sd15 VAE", SD15_VAE)):
            yield f"{name} encoder, full size, 512x512", Vae, config, diffusers_encoder, golden.encode, image(512, 512)
            yield f"{name} decoder, full size, 512x512", Vae, config, diffusers_decoder, golden.decode, latent(
                config.latent_channels, 64, 64)
        config = StableDiffusionConfig()
        yield "sd15 UNet, full size, 64x64", StableDiffusionUNet, config, diffusers_unet, None, inputs.unet(
            config, 64, 64, [501.0], tokens=77)


@torch.no_grad()
def compare_networks(report: Report, full: bool, runtime: Path | None) -> None:
    for name, model_class, config, independent, twin_run, inputs in networks(full):
        module, run = independent(config)
        golden.randomise(module, seed=21, stream=STREAM)
        want = run(*inputs.values())
        twin = twin_of(model_class, config, module.state_dict())
        got = (twin_run(twin) if twin_run else twin)(*inputs.values())
        report.line(f"twin: {name}", relative_l2(got, want))
        if runtime:
            compare_runtime(report, runtime, name, config, module, inputs, want)


def compare_runtime(report: Report, runtime: Path, name: str, config, module, inputs: dict, want) -> None:
    """Write the independent module's weights and output as a golden folder, and run the runtime's comparison on it."""
    tensors = {f"input.{key}": golden.channels_last(value) for key, value in inputs.items()}
    tensors = {k: v.int() if k == "input.ids" else v.float() for k, v in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        config.save(folder)
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors")
        save_file(tensors | {"output": golden.channels_last(want).float()}, folder / "golden.safetensors")
        for values in run_runtime(runtime, folder):
            report.line(f"runtime: {name}", values)


def run_runtime(runtime: Path, folder: Path) -> list[float]:
    """Parse the relative L2 of each output from the runtime's lines `output.NAME VALUE`."""
    done = subprocess.run([runtime, "golden", folder, "--device", "cpu"], capture_output=True, text=True)
    errors = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("output")]
    # A difference beyond the runtime's tolerance is an error of it too, but has values.
    if done.returncode and not errors:
        raise SystemExit(done.stderr)
    return errors


class Linear:
    """Stand-in for a network: linear in the latent, easy to repeat, of any prediction type."""

    def __init__(self, kind: str):
        self.config = type("Config", (), {"prediction_type": kind})

    def __call__(self, x, t, text=None):
        return golden.fake_eps(x, 1.0) + 1e-5 * t.reshape(-1, 1, 1, 1)


def noise_of(shape):
    """The runtime's noise, in the form in which the samplers ask for it."""
    count = torch.Size(shape).numel()
    return lambda step, like=None: torch.from_numpy(normal(5, count, step)).float().reshape(shape)


def compare_ddim(report: Report) -> None:
    from diffusers import DDIMScheduler

    schedule, shape = Schedule(), (2, 8, 4, 4)
    start, text = golden.Inputs(3).normal(*shape), torch.zeros(2, 1, 1)
    fresh = noise_of(shape)
    different = []
    for steps in range(1, 1000):
        theirs = ddim_scheduler(DDIMScheduler, "epsilon", steps).timesteps.tolist()
        if theirs != schedule.ddim_timesteps(steps):
            different.append(steps)
    report.line(f"DDIM timesteps of 1 to 999 steps: {len(different)} differ", float(len(different)))
    for kind, steps, eta in (
        ("epsilon", 50, 0.0), ("v_prediction", 50, 0.0), ("sample", 50, 0.0), ("epsilon", 50, 1.0), ("epsilon", 50, 0.3),
        ("v_prediction", 7, 0.7), ("epsilon", 1, 0.0), ("epsilon", 10, 0.0), ("epsilon", 333, 0.5), ("epsilon", 999, 0.0),
    ):
        scheduler, network, z = ddim_scheduler(DDIMScheduler, kind, steps), Linear(kind), start
        for k, t in enumerate(scheduler.timesteps, start=1):
            z = scheduler.step(network(z, t), t, z, eta=eta, variance_noise=fresh(k) if eta else None).prev_sample
        ours = ddim(network, schedule, start, text, text, steps, 1.0, eta, fresh)
        report.line(f"DDIM: {steps} steps, eta {eta}, {kind}", relative_l2(ours, z))
    compare_guided(report, DDIMScheduler, schedule)


def ddim_scheduler(scheduler_class, kind: str, steps: int):
    scheduler = scheduler_class(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=kind,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def compare_guided(report: Report, scheduler_class, schedule: Schedule) -> None:
    """Compare 50 guided steps of diffusers' scheduler and UNet with those of the twin's."""
    module, run = diffusers_unet(golden.SD15_UNET)
    golden.randomise(module, seed=21)
    twin = twin_of(StableDiffusionUNet, golden.SD15_UNET, module.state_dict())
    inputs = golden.Inputs(12)
    start = inputs.normal(1, 4, 8, 16)
    text, empty = inputs.normal(1, 13, 24), inputs.normal(1, 13, 24)
    scheduler, z = ddim_scheduler(scheduler_class, "epsilon", 50), start
    for t in scheduler.timesteps:
        without, with_text = run(torch.cat([z, z]), t, torch.cat([empty, text])).chunk(2)
        z = scheduler.step(without + 3.0 * (with_text - without), t, z).prev_sample
    report.line("DDIM: 50 guided steps of the small sd15 UNet", relative_l2(ddim(twin, schedule, start, text, empty, 50, 3.0), z))


def compare_ufogen(report: Report, path: Path) -> None:
    spec = importlib.util.spec_from_file_location("scheduling_ufogen", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    schedule, shape = Schedule(), (2, 8, 4, 4)
    start, fresh = golden.Inputs(3).normal(*shape), noise_of(shape)
    for kind in ("epsilon", "v_prediction", "sample"):
        for steps in (1, 2, 4):
            scheduler = module.UFOGenScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                prediction_type=kind, timestep_spacing="trailing",
            )
            scheduler.set_timesteps(steps)
            same = scheduler.timesteps.tolist() == schedule.one_step_timesteps(steps)
            z, network = start, Linear(kind)
            for k, t in enumerate(scheduler.timesteps, start=1):
                module.randn_tensor = lambda *_, k=k, **__: fresh(k)
                z = scheduler.step(network(z, t), t, z).prev_sample
            ours = one_step(network, schedule, start, None, steps, fresh)
            report.line(f"UFOGen: {steps} steps, {kind}", relative_l2(ours, z) if same else float("nan"))


def compare_tokenizer(report: Report) -> None:
    texts, theirs, ours = tokenizer_cases.texts(), tokenizer_cases.reference(), ClipTokenizer()
    encode = lambda text: theirs(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
    different = sum(encode(text) != ours.encode(text) for text in texts)
    report.line(f"tokenizer: {len(texts)} texts, {different} differ", float(different))
    plain = PlainBpe()
    different = sum(encode(text) != plain.encode(text) for text in texts)
    report.line(f"tokenizer in plain Python: {len(texts)} texts, {different} differ", float(different))
    committed = json.loads(tokenizer_cases.DEFAULT_OUT.read_text())
    stale = sum(case["ids"] != encode(case["text"]) for case in committed)
    report.line(f"tokenizer: {len(committed)} committed cases, {stale} differ", float(stale))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also compare full-size networks")
    parser.add_argument("--ufogen", type=Path, help="diffusers' examples/community/scheduling_ufogen.py")
    parser.add_argument("--runtime", type=Path, help="release binary of mobilediffusion")
    options = parser.parse_args()
    report = Report()
    compare_tokenizer(report)
    compare_ddim(report)
    if options.ufogen:
        compare_ufogen(report, options.ufogen)
    compare_networks(report, options.full, options.runtime)
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
