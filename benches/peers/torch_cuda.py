"""Time the twin in PyTorch on a CUDA device: `python torch_cuda.py eager|graph|compiled JOB...`.

Prints a line of JSON for each job; a job is NETWORK:SIZE:BATCH:DTYPE, as in unet:512:1:f16. Networks run with channels
innermost, in the job's type, under inference mode. `graph` captures the eager network in a CUDA graph and replays it,
which leaves out the time in which Python launches kernels; `compiled` uses torch.compile with max-autotune. Each result
is checked against the twin in f32 on the same device before anything is timed. `--device cpu` tries the script without a
CUDA device.
"""

import argparse
import json
import sys

import torch

from twin import Job, checked, median_of, one_line


def measure(job, how, device):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        want = job.model.to(device)(*(x.to(device) for x in job.inputs))
    model, inputs = job.converted(device, last=True)
    if how == "graph":
        run = captured(model, inputs, device)
    else:
        run = torch.compile(model, mode="max-autotune") if how == "compiled" else model

    def once():
        output = run(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return output

    error = checked(job, once(), want)
    # An idle GPU has lowered its clocks.
    return {"seconds": median_of(once, warm_up=0.5 if device == "cuda" else 0.0), "error": error}


def captured(model, inputs, device):
    """Return a function that replays the model on these inputs as a CUDA graph. Without CUDA, it runs the model."""
    if device != "cuda":
        return model
    # Libraries choose algorithms and allocate in the first runs, which a graph must not capture.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(*inputs)

    def replay(*_):
        graph.replay()
        return output

    return replay


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("how", choices=["eager", "graph", "compiled"])
    parser.add_argument("jobs", nargs="+", metavar="NETWORK:SIZE:BATCH:DTYPE")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: this PyTorch has no CUDA device")
    torch.backends.cudnn.benchmark = True
    name = f"PyTorch {torch.__version__} {options.how}, channels last"
    with torch.inference_mode():
        for text in options.jobs:
            line = {"peer": name, "job": text}
            try:
                line |= measure(Job(text), options.how, options.device)
            except (RuntimeError, ValueError) as error:
                line["why"] = one_line(error)
            print(json.dumps(line), flush=True)
            torch.compiler.reset()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
