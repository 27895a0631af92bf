"""Draw the stages' curves side by side: `python reference/curves.py OUT CURVES.png`."""

import csv
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 300, 180, 30
PLOTS = [("vae", "loss"), ("base", "loss"), ("relu", "loss"), ("ufogen", "trajectory"), ("decoder", "loss")]


def read_curve(path: Path, column: str) -> tuple[list[float], list[float]]:
    """Read the steps and values of one column of a curve."""
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    return [float(r["step"]) for r in rows], [float(r[column]) for r in rows]


def plot(draw: ImageDraw.ImageDraw, left: int, title: str, steps: list[float], values: list[float]) -> None:
    """Draw one curve with a logarithmic value axis."""
    logs = [math.log(v) for v in values]
    low, high = min(logs), max(logs)
    x = lambda s: left + MARGIN + s / steps[-1] * (WIDTH - 1.5 * MARGIN)
    y = lambda v: MARGIN + (high - v) / (high - low) * (HEIGHT - 2 * MARGIN)
    draw.rectangle((x(0), MARGIN, x(steps[-1]), HEIGHT - MARGIN), outline="lightgray")
    draw.line([(x(s), y(v)) for s, v in zip(steps, logs)], fill="darkblue", width=2)
    draw.text((x(0), 8), title, fill="black")
    draw.text((left + 2, MARGIN), f"{math.exp(high):.2g}", fill="black")
    draw.text((left + 2, HEIGHT - MARGIN - 10), f"{math.exp(low):.2g}", fill="black")
    draw.text((x(steps[-1]) - 60, HEIGHT - MARGIN + 4), f"{steps[-1]:.0f} steps", fill="black")


def main() -> None:
    out, target = Path(sys.argv[1]), sys.argv[2]
    image = Image.new("RGB", (WIDTH * len(PLOTS), HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for i, (stage, column) in enumerate(PLOTS):
        plot(draw, i * WIDTH, f"{stage}: {column}", *read_curve(out / stage / "curve.csv", column))
    image.save(target)


if __name__ == "__main__":
    main()
