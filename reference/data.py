"""Build the training set: `python reference/data.py OUT`.

Downloads one package of vector icon sets, rasterises the concepts of
`concepts.json` on white, and writes into OUT

    pictures.npz    pictures uint8 [n, size, size, 3], concept, style and split int64 [n], weight float64 [n]
    captions.json   the captions of every picture
    names.json      the names of every concept
    manifest.json   set, licence, author, number of pictures of each split
    sheet.png       all pictures, one row per concept, one column per set

`split` is 0 for training, 1 for a held-out style of a known concept, 2 for a
held-out concept. With `--plan gpu` the pictures are larger, and every icon that
several sets have under one name is added to the concepts of the file.
"""

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageDraw

from training.plan import PLANS

PACKAGE, VERSION = "@iconify/json", "2.2.535"
# Licences that allow redistribution of a trained model with a notice; share-alike is left out.
LICENCES = {"Apache-2.0", "MIT", "CC-BY-4.0"}
TRAIN, HELD_STYLE, HELD_CONCEPT = 0, 1, 2
# Icons that do not show a thing (flags, letters, signs) or that differ only in skin colour.
SKIPPED = ("flag", "skin", "letter", "keycap", "button", "tone", "input", "oclock", "thirty", "squared", "hand", "-man", "-woman")
CONCEPTS = Path(__file__).with_name("concepts.json")


def load_concepts() -> dict:
    return json.loads(CONCEPTS.read_text())


def captions(concept: dict, style: str, templates: list[str]) -> list[str]:
    """Return all captions of one concept in one style."""
    # `unicorn` takes `a`: it begins with the sound of `you`.
    article = lambda name: "an" if name[0] in "aeiou" and not name.startswith("uni") else "a"
    return [t.format(name=n, article=article(n), style=style) for n in concept["names"] for t in templates]


def fetch_sets(names: list[str], folder: Path) -> dict:
    """Return the JSON of every set by name. The package is downloaded once."""
    archive = folder / f"{PACKAGE.strip('@').replace('/', '-')}-{VERSION}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    sets = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if path.parent == Path("package/json") and path.stem in names:
                sets[path.stem] = json.load(tar.extractfile(member))
    return {name: sets[name] for name in names}


def find_icon(icon_set: dict, names: list[str]) -> dict | None:
    """Return the first icon of a set under one of `names`, aliases included."""
    for name in names:
        alias = icon_set.get("aliases", {}).get(name)
        if alias and set(alias) == {"parent"}:  # an alias that also rotates or flips is another picture
            name = alias["parent"]
        if name in icon_set["icons"]:
            return icon_set["icons"][name]
    return None


def rasterise(icon_set: dict, icon: dict, size: int) -> np.ndarray | None:
    """Rasterise an icon to [size, size, 3] uint8 on white. Return None if the picture is empty."""
    box = {k: icon.get(k, icon_set.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))}
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}" '
        f'height="{size}" viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    pixels = np.asarray(Image.alpha_composite(ground, picture).convert("RGB"))
    painted = (pixels < 250).any(axis=-1).mean()
    return pixels if pixels.shape == (size, size, 3) and painted > 0.03 else None


def all_concepts(spec: dict, sets: dict, min_sets: int) -> list[dict]:
    """Return the concepts of the file, each with its `weight` and its held-out styles `held`.

    The k-th concept of `more` holds out one style, in turns over the sets; the concepts of `held_out` hold out all
    styles. If `min_sets` is above 0, all names that at least so many sets share follow. Of these, 5 % of the concepts
    and 5 % of the pairs are held out, chosen by a hash of the name.
    """
    styles = list(spec["sets"])
    concepts = [c | {"weight": 2.0} for c in spec["core"]] + spec["others"]
    concepts += [c | {"held": [styles[k % len(styles)]]} for k, c in enumerate(spec["more"])]
    concepts += [c | {"held": styles, "unknown": True} for c in spec["held_out"]]
    if min_sets:
        taken = {icon for c in concepts for icon in c["icons"]}
        count = Counter(name for s in sets.values() for name in s["icons"])
        shared = sorted(n for n, k in count.items() if k >= min_sets and n not in taken and not any(w in n for w in SKIPPED))
        for name in shared:
            digest = hashlib.sha256(name.encode()).digest()
            if unknown := digest[0] < 13:
                held = styles
            else:
                held = [style for style, byte in zip(styles, digest[1:]) if byte < 13]
            concepts.append({"icons": [name], "names": [name.replace("-", " ")], "held": held, "unknown": unknown})
    return concepts


def draw_all(concepts: list[dict], sets: dict, styles: dict, templates: list[str], size: int):
    """Return all pictures as the arrays of `pictures.npz`, their captions, and the rows of the sheet."""
    columns = {"pictures": [], "concept": [], "style": [], "split": [], "weight": []}
    texts, rows = [], []
    for i, concept in enumerate(concepts):
        rows.append([None] * len(styles))
        for j, style in enumerate(styles):
            # "skip" lists styles whose picture does not match the words, like an orange "red rose".
            icon = None if style in concept.get("skip", []) else find_icon(sets[style], concept["icons"])
            pixels = rasterise(sets[style], icon, size) if icon else None
            if pixels is None:
                continue
            rows[-1][j] = pixels
            held = HELD_CONCEPT if concept.get("unknown") else HELD_STYLE
            split = held if style in concept.get("held", []) else TRAIN
            for key, value in zip(columns, (pixels, i, j, split, concept.get("weight", 1.0))):
                columns[key].append(value)
            texts.append(captions(concept, styles[style], templates))
    return {key: np.array(values) for key, values in columns.items()}, texts, rows


def contact_sheet(rows: list[list[np.ndarray | None]], labels: list[str], size: int, path: Path) -> None:
    """Draw the sheet: one row per concept, with its name on the left."""
    left, columns = 150, max(map(len, rows))
    sheet = Image.new("RGB", (left + columns * size, len(rows) * size), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (row, label) in enumerate(zip(rows, labels)):
        draw.text((4, y * size + size // 2 - 6), label, fill="black")
        for x, pixels in enumerate(row):
            if pixels is not None:
                sheet.paste(Image.fromarray(pixels), (left + x * size, y * size))
    sheet.save(path)


def manifest(sets: dict, style: np.ndarray, split: np.ndarray) -> dict:
    """Return the source and licence of every set, and the number of its pictures in each split."""
    count = lambda chosen: dict(zip(("train", "held_out_pairs", "held_out_concepts"), np.bincount(split[chosen], minlength=3).tolist()))
    described = []
    for j, (name, icon_set) in enumerate(sets.items()):
        info = icon_set["info"]
        described.append({
            "set": name, "title": info["name"], "licence": info["license"]["spdx"], "author": info["author"]["name"],
            "source": info["author"]["url"], "pictures": count(style == j),
        })
    return {"package": PACKAGE, "version": VERSION, "pictures": count(style >= 0), "sets": described}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--plan", choices=PLANS, default="cpu")
    options = parser.parse_args()
    out, plan = options.out, PLANS[options.plan]
    out.mkdir(parents=True, exist_ok=True)

    spec = load_concepts()
    sets = fetch_sets(list(spec["sets"]), out)
    for name, icon_set in sets.items():
        if icon_set["info"]["license"]["spdx"] not in LICENCES:
            raise SystemExit(f"the licence of {name} is not one of {sorted(LICENCES)}")
    concepts = all_concepts(spec, sets, plan.min_sets)
    arrays, texts, rows = draw_all(concepts, sets, spec["sets"], spec["captions"], plan.size)
    np.savez_compressed(out / "pictures.npz", **arrays)
    (out / "captions.json").write_text(json.dumps(texts) + "\n")
    (out / "names.json").write_text(json.dumps([c["names"] for c in concepts]) + "\n")
    described = manifest(sets, arrays["style"], arrays["split"])
    (out / "manifest.json").write_text(json.dumps(described, indent=2) + "\n")
    if not plan.min_sets:
        contact_sheet(rows, [c["names"][0] for c in concepts], plan.size, out / "sheet.png")
    print(f"{len(texts)} pictures of {len(concepts)} concepts in {len(sets)} styles: {described['pictures']}")


if __name__ == "__main__":
    main()
