"""Time 3x3 convolutions in onnxruntime's CPU provider, for comparison with the CPU form of `conv2d`.

Run by hand, outside CI: `pip install onnxruntime onnx numpy`, then `python onnxruntime_conv.py [RUNS]`. There is one
graph per shape: a Resize by nearest neighbour if the map is upsampled, then the convolution with a bias. FLOPs are
counted as in the kernel's `cost()`: two for each multiply-accumulate of the definition.
"""

import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# Height and width of the input, input channels, output channels, upsampling factor.
SHAPES = [
    (64, 320, 320, 1),
    (256, 128, 128, 1),
    (512, 64, 64, 1),
    (512, 128, 64, 1),
    (16, 1024, 1024, 2),
    (256, 128, 128, 2),
]


def graph(size, ci, co, upsample, random):
    """Build the model of one shape, with random weights."""
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


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    random = np.random.default_rng(1)
    print(f"onnxruntime {onnxruntime.__version__}, CPU provider, median of {runs}")
    for size, ci, co, upsample in SHAPES:
        model = graph(size, ci, co, upsample, random)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        x = random.standard_normal((1, ci, size, size), dtype=np.float32)
        session.run(None, {"x": x})
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            session.run(None, {"x": x})
            seconds.append(time.perf_counter() - start)
        median = float(np.median(seconds))
        flops = 2 * 9 * ci * co * (size * upsample) ** 2
        text = f"{size}x{size}" + (f" doubled to {size * upsample}x{size * upsample}" if upsample != 1 else "")
        print(f"{text} {ci}->{co}: {median * 1e3:.2f} ms, {flops / median / 1e9:.1f} GFLOP/s")


if __name__ == "__main__":
    main()
