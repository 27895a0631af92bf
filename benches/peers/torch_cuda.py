"""Time the twin in PyTorch on a CUDA device: `python torch_cuda.py FORM[,FORM...] JOB...`.

A job is NETWORK:SIZE:BATCH:DTYPE, as in unet:512:1:f16. Prints a line of JSON for each job and form. The forms are
`eager`; `graph`, which captures the eager network in a CUDA graph and replays it, without the time in which Python
launches kernels; and `compiled`, which is torch.compile with max-autotune. Networks run in the job's type under inference
mode. `eager` and `graph` run both with channels innermost and contiguous, and the faster layout is reported. Each result
is checked against the twin in f32 on the same device before it is timed. `--device cpu` tries the script without a CUDA
device.
"""

import argparse
import json
import sys

import torch

from twin import Job, checked, one_line, timed

FORMS = ("eager", "graph", "compiled")
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def report(text, forms, device):
    """Measure a job in every form, and print a line for each as soon as it is measured."""
    line = {"peer": f"PyTorch {torch.__version__} {', '.join(forms)}", "job": text}
    try:
        # Trying all algorithms is worth it only for what is timed.
        torch.backends.cudnn.benchmark = False
        job = Job(text, device)
        want = job.model(*job.inputs)
        job.convert()
    except Exception as error:  # noqa: BLE001 - the next job may succeed.
        return print(json.dumps(line | {"why": one_line(error)}), flush=True)
    torch.backends.cudnn.benchmark = True
    for form in forms:
        line = {"peer": f"PyTorch {torch.__version__} {form}", "job": text}
        try:
            layout, best = fastest(job, form, want, device)
            line |= best | {"peer": f"{line['peer']}, {layout}"}
        except Exception as error:  # noqa: BLE001 - the next form may succeed.
            line["why"] = one_line(error)
        print(json.dumps(line), flush=True)


def fastest(job, form, want, device):
    """Measure a job in each layout. Return the faster one's name and numbers."""
    # Only feature maps have a layout, and compilation takes minutes.
    both = form != "compiled" and job.has_maps()
    names = list(LAYOUTS) if both else ["channels last" if job.has_maps() else "contiguous"]
    found, failed = {}, None
    for name in names:
        job.lay_out(LAYOUTS[name])
        try:
            found[name] = measure(job, form, want, device)
        except Exception as error:  # noqa: BLE001 - the other layout may be right.
            failed = error
    if not found:
        raise failed
    best = min(found, key=lambda name: found[name]["seconds"])
    return best, found[best] | {"seconds_by_layout": {name: row["seconds"] for name, row in found.items()}}


def measure(job, form, want, device):
    """Check and time a job in one form."""
    if form == "graph":
        run = captured(job.model, job.inputs, device)
    else:
        run = torch.compile(job.model, mode="max-autotune") if form == "compiled" else job.model

    def once():
        output = run(*job.inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return output

    try:
        error = checked(job, once(), want)
        # An idle GPU has lowered its clocks.
        return timed(once, warm_up=0.5 if device == "cuda" else 0.0) | {"error": error}
    finally:
        if form == "compiled":
            torch.compiler.reset()
        torch.cuda.empty_cache()


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


def listed(text):
    """Parse the forms."""
    forms = text.split(",")
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"not one of {', '.join(FORMS)}: {', '.join(unknown)}")
    return forms


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forms", type=listed, metavar="FORM[,FORM...]", help=", ".join(FORMS))
    parser.add_argument("jobs", nargs="+", metavar="NETWORK:SIZE:BATCH:DTYPE")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: this PyTorch has no CUDA device")
    # Convolutions in f32 would be computed with the 10 bits of TF32. Products are not by default.
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        for text in options.jobs:
            report(text, options.forms, options.device)


if __name__ == "__main__":
    main()
