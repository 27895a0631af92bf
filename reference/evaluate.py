"""Measure a checkpoint: `python reference/evaluate.py dual|table --data DATA --out OUT`.

    dual    train the image-text dual encoder on the training split's real pictures, into OUT/dual
    table   retrieval, Fréchet distance and PSNR of a checkpoint, into OUT/table.json, printed as Markdown

`table` keeps the rows that OUT/table.json already has; `--rows` names rows to compute again.
"""

import argparse
import json
from pathlib import Path

import torch

from evaluation import dual
from evaluation.table import ROWS, Judge, Painter, markdown
from export import DEFAULT_FOLDER


def measure(options) -> dict:
    """Compute the rows of the table. Rows of an earlier run stay unless `options.rows` names them."""
    path = options.out / "table.json"
    found = json.loads(path.read_text()) if path.exists() else {"rows": {}, "psnr": {}}
    judge = Judge(dual.load(options.out / "dual"), options.data, options.captions)
    painter = Painter(options.checkpoint, options.out)
    rows = {
        "real-train": {"label": "real, training split"} | judge.real(judge.known),
        "real-held": {"label": "real, held-out styles of known things"} | judge.real(judge.held_style),
    }
    found["psnr"] = {
        label: painter.reconstruction(pictures)
        for label, pictures in (("training pictures", judge.known), ("held-out pictures", judge.held))
    }
    for name, row in ROWS.items():
        if name in options.rows or name not in found["rows"] and not options.rows:
            images = judge.embed(painter.draw(row, judge.prompts))
            found["rows"][name] = {"label": row.label} | judge.judge(images, judge.texts, judge.concepts)
            print(row.label, found["rows"][name], flush=True)
    order = [*rows, *ROWS]
    rows |= found["rows"] | rows
    found["rows"] = {name: rows[name] for name in order if name in rows}
    path.write_text(json.dumps(found, indent=2) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["dual", "table"])
    parser.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of all stages' checkpoints")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--rows", nargs="*", default=[], choices=ROWS)
    parser.add_argument("--minutes", type=float, default=15.0, help="time limit of `dual`")
    parser.add_argument("--steps", type=int, default=3000, help="step limit of `dual`")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.what == "dual":
        dual.train(options.data, options.out / "dual", options.minutes, options.steps, "cpu")
    else:
        print(markdown(measure(options)))


if __name__ == "__main__":
    main()
