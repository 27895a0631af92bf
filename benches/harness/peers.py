"""Measurements of peers on the same device, each in a process of its own, for comparison with this project's times."""

import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path

from .jobs import EXE, json_lines
from .sections import FULL, again, timed_row

SCRIPTS = Path(__file__).resolve().parents[1] / "peers"
BUILT = f"peers/target/release/mobilediffusion-peers{EXE}"
# Modules that the script of networks on the CPU imports, and display names of its peers.
MODULES = ("torch", "onnx", "onnxruntime", "safetensors")
NAMES = {"onnxruntime": "onnxruntime", "torch": "PyTorch"}
# Seconds without which compiled PyTorch is not begun.
COMPILES = 120
# Largest error of a peer that is compared, by whether it computes in f16.
BOUNDS = {False: 1e-3, True: 2e-2}


def run(section, options, kind):
    """Measure all peers that run on this device and were not measured before. Others are left out with the reason."""
    # Each step may take this share of the time left.
    steps = [(1.0, "kernels of peers", lambda: kernels(section, options, kind))]
    if options.quick:
        section.leave_out("networks of peers", "a quick run")
    elif kind == "cpu":
        # `on_cpu` has timed whole networks on the CPU already.
        section.leave_out("PyTorch on CUDA, onnxruntime-webgpu", "the device is the CPU")
    else:
        section.leave_out("PyTorch and onnxruntime on the CPU", "the device is a GPU or its driver")
        steps.insert(0, (0.65 if kind == "software" else 0.4, "onnxruntime-webgpu", lambda: webgpu(section, kind)))
        if kind == "software":
            section.leave_out("PyTorch on CUDA", "the device is a software driver")
        else:
            # `torch` has timed its other forms already. This one gets what is left.
            steps.append((1.0, "PyTorch compiled", lambda: compiled(section)))
    end = section.budget.end
    for part, name, step in steps:
        section.budget.end = section.budget.clock() + part * (end - section.budget.clock())
        section.guard(name, step)
    section.budget.end = end


def lines_of(section, what, command, keep):
    """Call `keep` with every JSON line that a peer's process printed, also if it failed later."""
    def attempt(left):
        values, why = json_lines(command, left)
        if why:
            section.leave_out(f"{what}, from here on" if values else what, why)
        return values

    def keep_each(values):
        for value in values:
            keep(value)

    section.attempt(what, attempt, keep_each)


def compare(section, peer, what, seconds, ours, **others):
    section.record["peers"].append(
        {"peer": peer, "what": what, "seconds": seconds, "ours_seconds": ours, "ratio": ours / seconds, **others})


def first_file(asked, *usual):
    """Return the path of the file that was asked for, or of the first usual place that has it, or None."""
    return next((path.resolve() for path in ([asked] if asked else usual) if path.is_file()), None)


def kernels(section, options, kind):
    """Time burn (wgpu) or candle (CPU) at the kernels' shapes that were timed."""
    peer, other = ("candle", "burn (wgpu)") if kind == "cpu" else ("burn", "candle")
    section.leave_out(f"kernels of {other}", "it does not run on this device")
    binary = first_file(options.peers, SCRIPTS.parent / BUILT, section.program.path.with_name(Path(BUILT).name))
    if binary is None:
        return section.leave_out(f"kernels of {peer}", "not built: `cargo build --release` in benches/peers")
    for dtype, rows in section.record["kernels"].items():
        ours = {(row["kernel"], row["shape"]): row["median_us"] * 1e-6 for row in rows}

        def keep(line):
            what = f"{line['kernel']} {line['shape']}, {dtype}"
            if "why" in line:
                section.leave_out(f"{peer}: {what}", line["why"])
            elif line["error"] is None or not line["error"] <= BOUNDS[line["half"]]:
                section.leave_out(f"{peer}: {what}", f"wrong: its error is {line['error']}")
            else:
                compare(section, peer, what, line["seconds"], ours[line["kernel"], line["shape"]])

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bench.json"
            file.write_text(json.dumps({"machine": {"storage": dtype}, "shapes": rows}))
            command = [binary, file, peer, kind, f"{max(section.budget.left() - 10, 1):.1f}"]
            lines_of(section, f"kernels of {peer}, {dtype}", command, keep)


def on_cpu(section):
    """Time onnxruntime and PyTorch on the CPU, with the script that runs them and this project in turns."""
    what = "onnxruntime and PyTorch"
    if not importable(section, what, MODULES):
        return
    end = section.budget.end
    # The text encoder is small; the other two take about the same time.
    for network, part in (("text", 0.25), ("unet", 0.6), ("decoder", 1.0)):
        left = part * (end - section.budget.clock())
        section.budget.end = section.budget.clock() + left
        command = [sys.executable, SCRIPTS / "networks.py", section.program.path, network, "--json"]
        # The first round always runs. Another one is begun only in the first half of the time, as it may take as long
        # again.
        within = ["--within", f"{0.5 * left:.1f}"]
        lines_of(section, f"{what}, {network}", [*command, *within], lambda line: keep_turns(section, line))
    section.budget.end = end


def keep_turns(section, line):
    """Add a line of networks that were timed in turns: rows of this project's networks, and of their peers."""
    for row in line["networks"]:
        network, ours = row["network"], row["seconds"]["ours"]
        timed_row(section, FULL, network, 512, 1, "f32", ours * 1e6)
        for peer, seconds in row["seconds"].items():
            if peer != "ours":
                name = f"{NAMES[peer]} {line['versions'][peer]}"
                compare(section, name, f"{network} at 512, batch 1, f32", seconds, ours)


def importable(section, what, modules):
    """Return whether Python has these modules. Otherwise `what` is left out."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        section.leave_out(what, f"Python has no {', '.join(missing)}")
    return not missing


def networks(section, peer, command, jobs):
    """Run a script of a peer on jobs given as NETWORK:SIZE:BATCH:DTYPE. It prints a line of JSON for each."""
    words = [f"{r['network']}:{r['size']}:{r['batch']}:{r['dtype']}" for r in jobs]
    if not words:
        return section.leave_out(peer, "none of the networks it is compared with was timed")
    ours = dict(zip(words, (r["whole_us"] * 1e-6 for r in jobs)))

    def keep(line):
        what = "{} at {}, batch {}, {}".format(*line["job"].split(":"))
        if "why" in line:
            section.leave_out(f"{line.get('peer', peer)}: {what}", line["why"])
        else:
            others = {key: line[key] for key in ("min_seconds", "runs", "seconds_by_layout") if key in line}
            compare(section, line["peer"], what, line["seconds"], ours[line["job"]], **others)

    lines_of(section, peer, [sys.executable, *command, *words], keep)


def timed(section, dtypes, size=512):
    """Return the networks of the full-size model that were timed. The most important, the UNet at `size`, comes first."""
    found = [r for r in section.record["networks"]
             if r["preset"] == FULL and r["dtype"] in dtypes and r["network"] in ("unet", "decoder", "text")]
    return sorted(found, key=lambda r: (r["network"], r["size"], r["batch"]) != ("unet", size, 1))


def webgpu(section, kind):
    """Time onnxruntime's WebGPU provider on the same adapter."""
    jobs = timed(section, ("f32",) if kind == "software" else ("f16",), 256 if kind == "software" else 512)
    networks(section, "onnxruntime-webgpu", [SCRIPTS / "webgpu.py"], jobs)


def torch(section):
    """Time PyTorch on CUDA, as a CUDA graph and eager, and this project's UNet at 512 again before and after it."""
    jobs = timed(section, ("f16",))
    if not importable(section, "PyTorch on CUDA", ("torch",)):
        return
    first, end = len(section.record["peers"]), section.budget.end
    repeated = [(r["network"], r["size"], r["batch"]) for r in jobs[:1]] == [("unet", 512, 1)]
    if repeated:
        again(section, "before PyTorch")
        # Some time is kept for the last measurement.
        section.budget.end -= min(20, 0.25 * section.budget.left())
    networks(section, "PyTorch on CUDA", [SCRIPTS / "torch_cuda.py", "graph,eager"], jobs)
    section.budget.end = end
    rows = section.record["peers"][first:]
    if repeated and rows:
        again(section, "after PyTorch")
        use_repeats(section, jobs[0], rows)


def use_repeats(section, job, rows):
    """Compare a peer's rows of the repeated network with the median of its first time and of the repeats."""
    repeats = section.record["repeats"]
    seconds = 1e-6 * statistics.median([job["whole_us"], *(repeat["whole_us"] for repeat in repeats)])
    for row in rows:
        if repeats and row["what"] == repeats[0]["what"]:
            row.update(ours_seconds=seconds, ratio=seconds / row["seconds"])


def compiled(section):
    """Time compiled PyTorch, if there is time to compile it."""
    if section.budget.left() < COMPILES:
        how = "`python3 benches/peers/torch_cuda.py compiled unet:512:1:f16` measures it alone"
        section.leave_out("PyTorch compiled", f"it compiles for minutes, and less than {COMPILES} s were left: {how}")
    elif importable(section, "PyTorch compiled", ("torch",)):
        networks(section, "PyTorch compiled", [SCRIPTS / "torch_cuda.py", "compiled"], timed(section, ("f16",)))
