"""Compare whole networks of the full-size model on the CPU with onnxruntime and PyTorch, in turns.

    pip install -r ../../reference/requirements.txt onnx==1.23.2 onnxruntime==1.32.0
    cargo build --release
    python networks.py ../../target/release/mobilediffusion [NETWORK ...] [--rounds N] [--within SECONDS] [--json]

The networks are the UNet at 64x64 latents, the light decoder to 512x512 pixels and the text encoder of 77 tokens, in
f32 with random weights. The peers run the twin in `reference/`; onnxruntime runs an export of it, which is kept in
`--cache`. First all three compute one golden case of the twin, and one that is further than 1e-4 (relative L2) from it
is not timed. Then, in every round, the program times its plan (`bench --plan`, the median of 20 runs, or of fewer if
`--within` is short) and each peer runs a few times, so that a busy or throttled machine affects all of them. The script
reports medians over the rounds and the ratio to each peer.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))
import full_size
import golden
from twin import relative_l2, seconds_of

# For each network by the program's name: its part of `full_size.PARTS`, and the runs of a peer in a round.
NETWORKS = {"unet": ("unet", 3), "decoder": ("decoder", 3), "text": ("text_encoder", 9)}
BOUND = 1e-4
SLOW = 2.0
STARTED = time.monotonic()


class Network(torch.nn.Module):
    """Network of the twin in the form to run. The decoder divides by its scaling factor first."""

    def __init__(self, part):
        super().__init__()
        model_class, config, inputs, run = full_size.PARTS[part]
        self.model = golden.randomise(model_class(config), seed=41)
        self.inputs = inputs(config)
        self.divisor = config.scaling_factor if run else None

    def forward(self, *inputs):
        return self.model(inputs[0] / self.divisor) if self.divisor else self.model(*inputs)


def exported(network, path):
    """Return the network's ONNX file, and export it first if needed."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        names = list(network.inputs)
        inputs = tuple(network.inputs.values())
        torch.onnx.export(network, inputs, str(path), dynamo=False, input_names=names, opset_version=17)
    return path


def session(path, network):
    made = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in network.inputs.items()}
    return lambda: torch.from_numpy(made.run(None, feed)[0])


def channels_last(network):
    """Return the network with channels innermost, a layout in which PyTorch's convolutions may be faster."""
    network.model.to(memory_format=torch.channels_last)
    last = lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    inputs = [last(x) for x in network.inputs.values()]
    return lambda: network(*inputs)


def ours_differs(program, network, want):
    """Return the program's relative L2 error, by way of a checkpoint folder with the twin's weights."""
    with tempfile.TemporaryDirectory() as folder:
        golden.save_model(network.model, Path(folder), torch.float32)
        record = {f"input.{name}": golden.channels_last(x) for name, x in network.inputs.items()}
        record = {name: x.int() if name == "input.ids" else x for name, x in record.items()}
        save_file(record | {"output": golden.channels_last(want)}, Path(folder) / "golden.safetensors")
        command = [program, "golden", folder, "--device", "cpu"]
        # A difference beyond the program's tolerance is an error of it too, but has values.
        done = subprocess.run(command, capture_output=True, text=True)
        errors = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("output")]
    return max(errors) if errors else sys.exit(done.stderr)


def ours(program, name, within):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [program, "bench", "--plan", name, "--preset", "mobilediffusion", "--device", "cpu", "--json", file.name]
        command += [] if within is None else ["--within", str(within / 4)]
        subprocess.run(command, check=True, capture_output=True)
        return json.load(open(file.name))["plan"]["whole_us"] * 1e-6


def median_of(run, runs):
    # Two runs are enough of a slow network.
    seconds = seconds_of(run, lambda done: len(done) < (2 if done and done[0] > SLOW else runs))
    # Idle threads of one peer may spin for a while; they have to sleep before the next peer is timed.
    time.sleep(0.5)
    return statistics.median(seconds)


def compare(name, options):
    part, runs = NETWORKS[name]
    network = Network(part)
    want = network(*network.inputs.values())
    errors = {"ours": ours_differs(options.program, network, want)}
    peers = {"onnxruntime": session(exported(network, options.cache / part / f"{part}.onnx"), network)}
    peers["torch"] = channels_last(network)
    errors |= {peer: relative_l2(run(), want) for peer, run in peers.items()}
    wrong = {who: error for who, error in errors.items() if not error <= BOUND}
    if wrong:
        sys.exit(f"{name}: too far from the twin's golden output: {wrong}")
    times = {who: [] for who in errors}
    for done in range(options.rounds):
        if done and time.monotonic() > options.until:
            break
        times["ours"].append(ours(options.program, name, options.within))
        for peer, run in peers.items():
            times[peer].append(median_of(run, runs))
    medians = {who: statistics.median(seconds) for who, seconds in times.items()}
    ratios = {peer: medians["ours"] / medians[peer] for peer in peers}
    return {"network": name, "seconds": medians, "ours_over": ratios, "relative_l2": errors, "rounds": times}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="release binary of mobilediffusion")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"networks to time, of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--within", type=float, metavar="SECONDS",
                        help="begin no further round after this many seconds, and no further run of the program's plan after a quarter of them")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/mobilediffusion-peers", help="folder for exported ONNX files")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    options = parser.parse_args()
    options.until = float("inf") if options.within is None else STARTED + options.within
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"not one of {', '.join(NETWORKS)}: {', '.join(sorted(unknown))}")
    with torch.inference_mode():
        results = [compare(name, options) for name in options.networks]
    versions = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
    if options.json:
        return print(json.dumps({"versions": versions, "threads": torch.get_num_threads(), "networks": results}))
    print(f"{versions}, {torch.get_num_threads()} threads, medians of at most {options.rounds} rounds")
    print("| network | ours, ms | onnxruntime, ms | PyTorch, ms | ours / onnxruntime | ours / PyTorch |")
    print("|---|---|---|---|---|---|")
    for row in results:
        cells = [f"{row['seconds'][who] * 1e3:.1f}" for who in ("ours", "onnxruntime", "torch")]
        cells += [f"{row['ours_over'][who]:.2f}" for who in ("onnxruntime", "torch")]
        print(f"| {row['network']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
