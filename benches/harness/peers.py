"""Peers on the same device: each in processes of its own, its times beside ours of the same run."""

import json
import sys
import tempfile
from pathlib import Path

from .jobs import json_lines
from .sections import FULL

SCRIPTS = Path(__file__).resolve().parents[1] / "peers"
BUILT = "peers/target/release/mobilediffusion-peers"
# A peer further from the exact result than this is not compared, by what it computes in.
BOUNDS = {False: 1e-3, True: 2e-2}


def run(section, options, kind):
    """All peers that this device may have; the others are named with the reason."""
    end = section.budget.end
    # Each may take so much of what is left.
    plan = [(0.35, lambda: kernels(section, options, kind))]
    if options.quick:
        section.leave_out("networks of peers", "a quick run")
    elif kind == "cpu":
        section.leave_out("PyTorch on CUDA, onnxruntime-webgpu", "the device is the CPU")
        plan.append((1.0, lambda: on_cpu(section)))
    else:
        section.leave_out("PyTorch and onnxruntime on the CPU", "the device is a GPU or its driver")
        plan.append((0.4, lambda: webgpu(section, kind)))
        if kind == "software":
            section.leave_out("PyTorch on CUDA", "the device is a software driver")
        else:
            plan += [(0.4, lambda: torch(section, "eager")), (1.0, lambda: torch(section, "compiled"))]
    for part, step in plan:
        section.budget.end = section.budget.clock() + part * (end - section.budget.clock())
        step()
    section.budget.end = end


def lines_of(section, what, command):
    """What a peer's process printed, as far as it came."""
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
    """burn (wgpu) and candle (CPU) at the shapes that were timed."""
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


def on_cpu(section):
    """onnxruntime's CPU provider and PyTorch, by the script that runs them and us in turns."""
    for network in ("unet", "decoder", "text"):
        script = SCRIPTS / "networks.py"
        command = [sys.executable, script, section.program.path, network, "--rounds", 1, "--json"]
        for line in lines_of(section, f"onnxruntime and PyTorch, {network}", command):
            for row in line["networks"]:
                for peer, seconds in row["seconds"].items():
                    if peer != "ours":
                        version = f"{peer} {line['versions'][peer]}"
                        compare(section, version, f"{network} at 512, f32", seconds, row["seconds"]["ours"])


def networks(section, peer, command, jobs):
    """A script of peers: `jobs` as NETWORK:SIZE:BATCH:DTYPE, a line of JSON for each that it timed."""
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


def timed(section, dtypes, names=("unet", "decoder", "text")):
    return [r for r in section.record["networks"]
            if r["preset"] == FULL and r["dtype"] in dtypes and r["network"] in names]


def webgpu(section, kind):
    """onnxruntime's WebGPU provider on the same adapter."""
    jobs = timed(section, ("f32",) if kind == "software" else ("f16",))
    # The bar of a software driver first.
    jobs.sort(key=lambda r: (r["network"], r["size"]) != ("unet", 256))
    networks(section, "onnxruntime-webgpu", [SCRIPTS / "webgpu.py"], jobs)


def torch(section, how):
    networks(section, f"PyTorch {how}", [SCRIPTS / "torch_cuda.py", how], timed(section, ("f16",)))
