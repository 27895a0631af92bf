"""Compare the CPU forms of `linear` and `conv2d` with numpy's BLAS and onnxruntime's CPU provider.

Run by hand, outside CI: `pip install onnxruntime onnx numpy`, `cargo build --release`, then `python cpu.py
../../target/release/mobilediffusion [ROUNDS]`. In every round the program times its shapes (`bench ... --device cpu
--json`), then the peers time the same shapes, so that a busy or throttled machine affects all of them. The medians over
the rounds are compared. FLOPs are counted as in the kernels' `cost()`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

# OpenBLAS reads this when numpy is loaded; a core type set by hand may be slower than the detected one.
os.environ.pop("OPENBLAS_CORETYPE", None)

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

RUNS = 5


def sizes(text):
    """Parse a shape, `bias cols=1024 k=768`, into a dictionary."""
    parts = [part.split("=") for part in text.split()]
    return {part[0]: part[1] if len(part) == 2 else True for part in parts}


def median_of(run):
    run()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def session(model):
    made = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in made.get_inputs()]
    return lambda *values: made.run(None, dict(zip(names, values)))


def product_graph(rows, k, cols, random):
    w = random.standard_normal((cols, k), dtype=np.float32)
    made = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, cols])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString(), w


def conv_graph(size, ci, co, upsample, random):
    """Build a 3x3 convolution with a bias and random weights, after a Resize by nearest neighbour if it upsamples."""
    weights = {
        "w": random.standard_normal((co, ci, 3, 3), dtype=np.float32) / np.float32(np.sqrt(9 * ci)),
        "bias": random.standard_normal(co, dtype=np.float32),
    }
    nodes, source = [], "x"
    if upsample != 1:
        weights["scales"] = np.array([1, 1, upsample, upsample], dtype=np.float32)
        # Nearest neighbour as the models define it: the pixel at floor(output / factor).
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        nodes.append(helper.make_node("Resize", ["x", "", "scales"], ["up"], **how))
        source = "up"
    nodes.append(helper.make_node("Conv", [source, "w", "bias"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    out = size * upsample
    made = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, ci, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, co, out, out])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Peers:
    """Peers for each shape, created once."""

    def __init__(self):
        self.random = np.random.default_rng(1)
        self.made = {}

    def linear(self, size):
        rows, k, cols = (int(size[name]) for name in ("rows", "k", "cols"))
        model, w = product_graph(rows, k, cols, self.random)
        x = self.random.standard_normal((rows, k), dtype=np.float32)
        run = session(model)
        return {"numpy": lambda: x @ w.T, "onnxruntime": lambda: run(x)}

    def conv2d(self, size):
        if size["stride"] != "1" or size["kernel"] != "3" or size["h"] != size["w"] or size["n"] != "1":
            return {}
        h, ci, co, upsample = (int(size[name]) for name in ("h", "ci", "co", "upsample"))
        run = session(conv_graph(h, ci, co, upsample, self.random))
        x = self.random.standard_normal((1, ci, h, h), dtype=np.float32)
        return {"onnxruntime": lambda: run(x)}

    def seconds(self, kernel, shape):
        """Return the median seconds of each peer at a shape."""
        if (kernel, shape) not in self.made:
            self.made[kernel, shape] = getattr(self, kernel)(sizes(shape))
        return {name: median_of(run) for name, run in self.made[kernel, shape].items()}


def ours(program, kernel):
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "bench.json")
        subprocess.run([program, "bench", kernel, "--device", "cpu", "--json", file], check=True, capture_output=True)
        with open(file) as handle:
            rows = json.load(handle)["shapes"]
    return {(row["kernel"], row["shape"]): row for row in rows}


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    peers, times, flops = Peers(), {}, {}
    for _ in range(rounds):
        for kernel in ("linear", "conv2d"):
            for (name, shape), row in ours(program, kernel).items():
                here = times.setdefault((name, shape), {})
                here.setdefault("ours", []).append(row["median_us"] * 1e-6)
                flops[name, shape] = row["flops_per_second"] * row["median_us"] * 1e-6
                for peer, seconds in peers.seconds(name, shape).items():
                    here.setdefault(peer, []).append(seconds)
    print(f"numpy {np.__version__}, onnxruntime {onnxruntime.__version__}, medians of {rounds} rounds; GFLOP/s")
    for (kernel, shape), here in times.items():
        rate = {name: flops[kernel, shape] / float(np.median(seconds)) / 1e9 for name, seconds in here.items()}
        best = max((rate[name] for name in rate if name != "ours"), default=None)
        if best:
            others = ", ".join(f"{name} {rate[name]:.1f}" for name in rate if name != "ours")
            print(f"{kernel} {shape}: ours {rate['ours']:.1f}, {others}: {rate['ours'] / best:.2f} of the best")


if __name__ == "__main__":
    main()
