"""Measurements of peers on the same device, each in a process of its own, for comparison with this project's times."""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

from .jobs import json_lines
from .sections import FULL, timed_row

SCRIPTS = Path(__file__).resolve().parents[1] / "peers"
BUILT = "peers/target/release/mobilediffusion-peers"
BUILT_PARITY = SCRIPTS.parents[1] / "target/release/examples/parity"
# Modules that the script of networks on the CPU imports, and display names of its peers.
MODULES = ("torch", "onnx", "onnxruntime", "safetensors")
NAMES = {"onnxruntime": "onnxruntime", "torch": "PyTorch"}
# Largest error of a peer that is compared, by whether it computes in f16.
BOUNDS = {False: 1e-3, True: 2e-2}


def run(section, options, kind):
    """Measure all peers that run on this device, whole networks before kernels. Others are left out with the reason."""
    end = section.budget.end
    # Each step may take this share of the time left.
    plan = [(1.0, lambda: kernels(section, options, kind))]
    if options.quick:
        section.leave_out("networks of peers", "a quick run")
    elif kind == "cpu":
        section.leave_out("PyTorch on CUDA, onnxruntime-webgpu", "the device is the CPU")
        # `on_cpu` has timed whole networks on the CPU already.
    else:
        section.leave_out("PyTorch and onnxruntime on the CPU", "the device is a GPU or its driver")
        if kind == "software":
            section.leave_out("PyTorch on CUDA", "the device is a software driver")
        else:
            # Compilation takes minutes, so it comes last and gets what is left.
            plan = [(0.3, lambda: torch(section, "eager")), (0.4, lambda: torch(section, "graph")),
                    (0.4, *plan[0][1:]), (1.0, lambda: torch(section, "compiled"))]
        plan.insert(0, (0.65 if kind == "software" else 0.3, lambda: webgpu(section, kind)))
    for part, step in plan:
        section.budget.end = section.budget.clock() + part * (end - section.budget.clock())
        step()
    section.budget.end = end


def lines_of(section, what, command):
    """Return the JSON lines that a peer's process printed, also if it failed later."""
    def attempt(left):
        values, why = json_lines(command, left)
        if why:
            section.leave_out(f"{what}, from here on" if values else what, why)
        return values
    return section.attempt(what, attempt) or []


def compare(section, peer, what, seconds, ours):
    section.record["peers"].append(
        {"peer": peer, "what": what, "seconds": seconds, "ours_seconds": ours, "ratio": ours / seconds})


def kernels(section, options, kind):
    """Time burn (wgpu) or candle (CPU) at the kernels' shapes that were timed."""
    peer, other = ("candle", "burn (wgpu)") if kind == "cpu" else ("burn", "candle")
    section.leave_out(f"kernels of {other}", "it does not run on this device")
    places = [options.peers] if options.peers else [SCRIPTS.parent / BUILT, section.program.path.with_name("mobilediffusion-peers")]
    binary = next((path for path in places if path.is_file()), None)
    if binary is None:
        return section.leave_out(f"kernels of {peer}", "not built: `cargo build --release` in benches/peers")
    for dtype, rows in section.record["kernels"].items():
        ours = {(row["kernel"], row["shape"]): row["median_us"] * 1e-6 for row in rows}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bench.json"
            file.write_text(json.dumps({"machine": {"storage": dtype}, "shapes": rows}))
            command = [binary.resolve(), file, peer, kind, f"{max(section.budget.left() - 10, 1):.1f}"]
            for line in lines_of(section, f"kernels of {peer}, {dtype}", command):
                what = f"{line['kernel']} {line['shape']}, {dtype}"
                if "why" in line:
                    section.leave_out(f"{peer}: {what}", line["why"])
                elif line["error"] is None or not line["error"] <= BOUNDS[line["half"]]:
                    section.leave_out(f"{peer}: {what}", f"wrong: its error is {line['error']}")
                else:
                    compare(section, peer, what, line["seconds"], ours[line["kernel"], line["shape"]])


def on_cpu(section, options):
    """Time onnxruntime and PyTorch on the CPU, with the script that runs them and this project in turns."""
    what = "onnxruntime and PyTorch"
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        return section.leave_out(what, f"Python has no {', '.join(missing)}")
    beside = section.program.path.parent
    places = [options.parity] if options.parity else [beside / "examples/parity", beside / "parity", BUILT_PARITY]
    parity = next((path.resolve() for path in places if path.is_file()), None)
    if parity is None:
        how = "`cargo build --release -p mobilediffusion-model --example parity`"
        return section.leave_out(what, f"the example parity, which checks them, is not built: {how}")
    end = section.budget.end
    # The text encoder is small; the other two take about the same time.
    for network, part in (("text", 0.25), ("unet", 0.6), ("decoder", 1.0)):
        left = part * (end - section.budget.clock())
        section.budget.end = section.budget.clock() + left
        command = [sys.executable, SCRIPTS / "networks.py", section.program.path, network, "--json", "--parity", parity]
        # The first round always runs. Another one is begun only in the first half of the time, as it may take as long
        # again.
        for line in lines_of(section, f"{what}, {network}", [*command, "--within", f"{0.5 * left:.1f}"]):
            for row in line["networks"]:
                timed_row(section, FULL, network, 512, 1, "f32", row["seconds"]["ours"] * 1e6)
                for peer, seconds in row["seconds"].items():
                    if peer != "ours":
                        name = f"{NAMES[peer]} {line['versions'][peer]}"
                        compare(section, name, f"{network} at 512, batch 1, f32", seconds, row["seconds"]["ours"])
    section.budget.end = end


def networks(section, peer, command, jobs):
    """Run a script of a peer on jobs given as NETWORK:SIZE:BATCH:DTYPE. It prints a line of JSON for each."""
    words = [f"{r['network']}:{r['size']}:{r['batch']}:{r['dtype']}" for r in jobs]
    if not words:
        return section.leave_out(peer, "none of the networks it is compared with was timed")
    ours = dict(zip(words, (r["whole_us"] * 1e-6 for r in jobs)))
    for line in lines_of(section, peer, [sys.executable, *command, *words]):
        what = "{} at {}, batch {}, {}".format(*line["job"].split(":"))
        if "why" in line:
            section.leave_out(f"{peer}: {what}", line["why"])
        else:
            compare(section, line["peer"], what, line["seconds"], ours[line["job"]])


def timed(section, dtypes, size=512):
    """Return the networks of the full-size model that were timed. The most important, the UNet at `size`, comes first."""
    found = [r for r in section.record["networks"]
             if r["preset"] == FULL and r["dtype"] in dtypes and r["network"] in ("unet", "decoder", "text")]
    return sorted(found, key=lambda r: (r["network"], r["size"], r["batch"]) != ("unet", size, 1))


def webgpu(section, kind):
    """Time onnxruntime's WebGPU provider on the same adapter."""
    jobs = timed(section, ("f32",) if kind == "software" else ("f16",), 256 if kind == "software" else 512)
    networks(section, "onnxruntime-webgpu", [SCRIPTS / "webgpu.py"], jobs)


def torch(section, how):
    networks(section, f"PyTorch {how}", [SCRIPTS / "torch_cuda.py", how], timed(section, ("f16",)))
