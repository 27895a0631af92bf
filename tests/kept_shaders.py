"""Provide the kernels' shaders, translated to another language, as files for tests/direct3d and tests/metal."""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable


def arguments(description: str) -> argparse.Namespace:
    """Parse the arguments FOLDER and EVERY of the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("every", metavar="EVERY", type=int, nargs="?", default=1)
    found = parser.parse_args()
    if found.every < 1:
        parser.error(f"EVERY: expected 1 or more, found {found.every}")
    found.folder = found.folder.resolve()
    found.folder.mkdir(parents=True, exist_ok=True)
    return found


def chosen_shaders(language: str, folder: Path, every: int) -> list[Path]:
    """Return about one in `every` modules of a language.

    They are taken from the folder SHADER_FOLDER if that is set. Else the test `shaders` writes them into `folder`.
    """
    kept = os.environ.get("SHADER_FOLDER")
    if kept is None:
        kept = folder / "shaders"
        shutil.rmtree(kept, ignore_errors=True)
        tests = ["cargo", "test", "--release", "--workspace", "--test", "shaders"]
        subprocess.run(tests, check=True, env=os.environ | {"SHADER_FOLDER": str(kept), "SHADER_EVERY": str(every)})
        every = 1
    shaders = sorted((Path(kept) / language).glob(f"*.{language}"))[::every]
    if not shaders:
        sys.exit(f"error: expected shaders in {Path(kept) / language}, found none")
    return shaders


def check_all(name: str, shaders: list[Path], check: Callable[[Path], str]):
    """Run `check` on each shader, print how many passed, and exit with status 1 if any did not.

    `check` returns the errors of a shader, or an empty text.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        verdicts = zip(shaders, threads.map(check, shaders))
        refused = [(path, errors) for path, errors in verdicts if errors]
    for path, errors in refused[:5]:
        print(f"{path}:\n{errors}\n")
    print(f"{name}: {len(shaders) - len(refused)} of {len(shaders)} shaders taken, {len(refused)} refused")
    if refused:
        sys.exit(1)
