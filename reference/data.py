"""Build the training set: `python reference/data.py OUT`.

Downloads one package of vector icon sets, rasterises the concepts of
`concepts.json` at 64x64 on white, and writes into OUT

    pictures.npz    pictures uint8 [n, 64, 64, 3], concept int64 [n], style int64 [n]
    manifest.json   set, licence, author, number of pictures
    sheet.png       all pictures, one row per concept, one column per set
"""

import argparse
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageDraw

PACKAGE, VERSION = "@iconify/json", "2.2.535"
SIZE = 64
# Licences that allow redistribution of a trained model with a notice; share-alike is left out.
LICENCES = {"Apache-2.0", "MIT", "CC-BY-4.0"}
CONCEPTS = Path(__file__).with_name("concepts.json")


def load_concepts() -> dict:
    return json.loads(CONCEPTS.read_text())


def captions(concept: dict, style: str) -> list[str]:
    """All captions of one concept in one style."""
    templates = load_concepts()["captions"]
    article = lambda name: "an" if name[0] in "aeio" else "a"
    return [t.format(name=n, article=article(n), style=style) for n in concept["names"] for t in templates]


def fetch_sets(names: list[str], folder: Path) -> dict:
    """Set name -> the set's JSON. The package is downloaded once."""
    archive = folder / f"{PACKAGE.strip('@').replace('/', '-')}-{VERSION}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    sets = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if path.parent == Path("package/json") and path.stem in names:
                sets[path.stem] = json.load(tar.extractfile(member))
    return sets


def find_icon(icon_set: dict, names: list[str]) -> dict | None:
    """The first icon present under one of `names`, aliases included."""
    for name in names:
        alias = icon_set.get("aliases", {}).get(name)
        if alias and set(alias) == {"parent"}:  # an alias that also turns or flips is not the same picture
            name = alias["parent"]
        if name in icon_set["icons"]:
            return icon_set["icons"][name]
    return None


def rasterise(icon_set: dict, icon: dict) -> np.ndarray | None:
    """Icon -> [64, 64, 3] uint8 on white, or None where the picture is empty."""
    box = {k: icon.get(k, icon_set.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))}
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIZE}" '
        f'height="{SIZE}" viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    pixels = np.asarray(Image.alpha_composite(ground, picture).convert("RGB"))
    painted = (pixels < 250).any(axis=-1).mean()
    return pixels if pixels.shape == (SIZE, SIZE, 3) and painted > 0.03 else None


def contact_sheet(rows: list[list[np.ndarray | None]], labels: list[str], path: Path) -> None:
    """One row per concept with its name on the left."""
    left, columns = 150, max(map(len, rows))
    sheet = Image.new("RGB", (left + columns * SIZE, len(rows) * SIZE), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (row, label) in enumerate(zip(rows, labels)):
        draw.text((4, y * SIZE + 26), label, fill="black")
        for x, pixels in enumerate(row):
            if pixels is not None:
                sheet.paste(Image.fromarray(pixels), (left + x * SIZE, y * SIZE))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    spec = load_concepts()
    styles, concepts = list(spec["sets"]), spec["core"] + spec["others"]
    sets = fetch_sets(styles, out)
    for name, icon_set in sets.items():
        if icon_set["info"]["license"]["spdx"] not in LICENCES:
            raise SystemExit(f"the licence of {name} is not one of {sorted(LICENCES)}")

    pictures, concept_index, style_index, rows = [], [], [], []
    for i, concept in enumerate(concepts):
        row = []
        for j, style in enumerate(styles):
            # "skip" names styles whose picture is not what the words say (an orange "red rose").
            icon = None if style in concept.get("skip", []) else find_icon(sets[style], concept["icons"])
            pixels = rasterise(sets[style], icon) if icon else None
            row.append(pixels)
            if pixels is not None:
                pictures.append(pixels)
                concept_index.append(i)
                style_index.append(j)
        rows.append(row)
    np.savez_compressed(
        out / "pictures.npz", pictures=np.stack(pictures), concept=np.array(concept_index), style=np.array(style_index)
    )
    manifest = {
        "package": PACKAGE,
        "version": VERSION,
        "pictures": len(pictures),
        "concepts": len(concepts),
        "sets": [
            {
                "set": style,
                "title": sets[style]["info"]["name"],
                "licence": sets[style]["info"]["license"]["spdx"],
                "author": sets[style]["info"]["author"]["name"],
                "source": sets[style]["info"]["author"]["url"],
                "pictures": style_index.count(j),
            }
            for j, style in enumerate(styles)
        ],
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    contact_sheet(rows, [c["names"][0] for c in concepts], out / "sheet.png")
    print(f"{len(pictures)} pictures of {len(concepts)} concepts in {len(styles)} styles")


if __name__ == "__main__":
    main()
