"""Time the twin in onnxruntime's WebGPU provider: `python webgpu.py JOB...`.

    pip install onnxruntime-webgpu==1.27.0 torch onnx

Prints a line of JSON for each job; a job is NETWORK:SIZE:BATCH:DTYPE, as in unet:512:1:f16. The provider takes the
first of the fastest adapters that its Vulkan loader lists. On software drivers it needs Mesa 25 or newer, or
SwiftShader. Outputs are checked against the twin before anything is timed. Nodes that the provider does not support run
on the CPU, and the output says so. Models are exported to a temporary folder.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import onnxruntime
import torch

from twin import BOUNDS, Job, checked, one_line, timed

PROVIDER = "WebGpuExecutionProvider"
# The provider adds up in f16: at 64 pixels the UNet is off by 5e-2 and the decoder by 2e-2; in f32 by less than 1e-4.
BOUNDS = BOUNDS | {"f16": 1e-1}


def attention(q, k, v, is_causal=False):
    """Compute softmax attention in the type of its factors. The exporter's own form always has a mask in f32."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if is_causal:
        scores = scores + torch.full(scores.shape[-2:], -3e4).triu(1).to(scores.dtype)
    return scores.softmax(-1) @ v


def session(path, fallback):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not fallback:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])


def measure(job, folder):
    want = job.model(*job.inputs)
    job.convert()
    inputs = job.inputs
    names = [f"input{i}" for i in range(len(inputs))]
    path = Path(folder) / "model.onnx"
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        torch.onnx.export(job.model, tuple(inputs), str(path), dynamo=False, input_names=names, opset_version=17)
    job.model = None
    line = {}
    try:
        made = session(path, fallback=False)
    except Exception:  # noqa: BLE001 - onnxruntime has no common class for what it raises.
        made = session(path, fallback=True)
        line["fallback"] = "some nodes on the CPU"
    if made.get_providers()[0] != PROVIDER:
        raise ValueError("the session fell back to the CPU")
    feed = {name: value.numpy() for name, value in zip(names, inputs)}
    once = lambda: made.run(None, feed)[0]
    error = checked(job, torch.from_numpy(once()), want, BOUNDS)
    return line | timed(once) | {"error": error}


def main():
    if PROVIDER not in onnxruntime.get_available_providers():
        sys.exit("error: this onnxruntime has no WebGPU provider: pip install onnxruntime-webgpu")
    with torch.inference_mode():
        for text in sys.argv[1:]:
            line = {"peer": f"onnxruntime-webgpu {onnxruntime.__version__}", "job": text}
            try:
                with tempfile.TemporaryDirectory() as folder:
                    line |= measure(Job(text), folder)
                if "fallback" in line:
                    line["peer"] += f" ({line['fallback']})"
            except Exception as error:  # noqa: BLE001 - as above; the next job may succeed.
                line["why"] = one_line(error)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
