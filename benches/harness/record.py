"""The record: its schema, its place and how it is written."""

import json
import os
import re
import sys
from pathlib import Path

FORMAT = 1
ROOT = Path(__file__).resolve().parents[2]
NUMBER, TEXT, MAYBE = (int, float), str, (int, float, type(None))

# Required keys with their types. A list holds values of the type of its only entry.
SCHEMA = {
    "format": int,
    "date": TEXT,
    "quick": bool,
    "seconds": NUMBER,
    "machine": {"device": TEXT, "kind": TEXT, "clocks": TEXT, "clock": TEXT},
    "peaks": dict,
    "kernels": dict,
    "networks": [{"preset": TEXT, "network": TEXT, "size": int, "batch": int, "dtype": TEXT, "whole_us": NUMBER,
                  "host_us": MAYBE}],
    "paper": [{"network": TEXT, "ratio": NUMBER, "paper_ratio": NUMBER}],
    "pictures": [{"model": TEXT, "dtype": TEXT, "first_seconds": NUMBER, "again_seconds": NUMBER, "weight_bytes": int,
                  "plan_bytes": int, "process_peak_bytes": MAYBE}],
    "starts": [{"model": TEXT, "dtype": TEXT, "cold": (dict, type(None)), "warm": (dict, type(None))}],
    "peers": [{"peer": TEXT, "what": TEXT, "seconds": NUMBER, "ours_seconds": NUMBER, "ratio": NUMBER}],
    "left_out": [{"what": TEXT, "why": TEXT}],
}
KERNEL = {"kernel": TEXT, "shape": TEXT, "median_us": NUMBER, "flops_per_second": NUMBER, "bytes_per_second": NUMBER,
          "part_of_limit": NUMBER, "bound": TEXT}
PEAKS = {"copy_bytes_per_second": NUMBER, "flops_per_second": NUMBER}


def problems(value, schema=None, at="record"):
    """Return the problems with a record, one line each."""
    if schema is None:
        found = problems(value, SCHEMA, at)
        for dtype, rows in (value.get("kernels") or {}).items():
            found += problems(rows, [KERNEL], f"{at}.kernels.{dtype}")
        for dtype, peaks in (value.get("peaks") or {}).items():
            found += problems(peaks, PEAKS, f"{at}.peaks.{dtype}")
        return found
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{at}: expected an object, found {type(value).__name__}"]
        missing = [f"{at}.{key}: missing" for key in schema if key not in value]
        inside = [problems(value[key], inner, f"{at}.{key}") for key, inner in schema.items() if key in value]
        return missing + sum(inside, [])
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{at}: expected a list, found {type(value).__name__}"]
        return sum((problems(item, schema[0], f"{at}[{i}]") for i, item in enumerate(value)), [])
    fits = isinstance(value, schema) and (schema is bool or not isinstance(value, bool))
    return [] if fits else [f"{at}: expected {schema}, found {value!r}"]


def slug(device):
    """Turn a device's name into the name of a folder: `llvmpipe (LLVM 15.0.6)` becomes `llvmpipe-llvm-15-0-6`."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def paths(folder, record):
    """Return the paths of a record's JSON and Markdown files.

    CPUs of the same name but of different families, models or vector widths get different folders.
    """
    machine = record["machine"]
    place = folder / slug(" ".join([machine["device"], machine.get("processor", "") if machine["kind"] == "cpu" else ""]))
    return place / f"{record['date']}.json", place / f"{record['date']}.md"


def write(files, texts):
    """Write texts to files, each completely or not at all."""
    for path, text in zip(files, texts):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)


def plain(value):
    """Remove this machine's paths from a record.

    The checkout's own path is left out, and other absolute paths are shortened to their last part.
    """
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if sys.executable:
        value = value.replace(sys.executable, Path(sys.executable).name)
    value = value.replace(f"{ROOT}/", "")
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+([\w.+-]+)", r"\1", value)


def as_json(record):
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
