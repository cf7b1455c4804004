"""Measure start-up times: `import convnext` and whole commands beside `import torch`, among them the prediction of one image.

    python benchmarks/start.py

Each time is the median of several fresh processes, interleaved: seconds on the clock, and CPU seconds, which other processes disturb
less. The network that predicts is a convnext_atto, trained on the digits for an epoch first (10 s); the image is a JPEG of 500 x 400.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

RUNS = 9
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import convnext": ["-c", "import convnext"],
    "from convnext import create_model": ["-c", "from convnext import create_model"],
    "convnext --help": ["-m", "convnext", "--help"],
    "convnext cost convnext_xlarge": ["-m", "convnext", "cost", "convnext_xlarge"],
    'convnext.load("run")("image.jpg")': ["-c", 'import convnext; convnext.load("run")("image.jpg")'],
    "convnext predict run image.jpg": ["-m", "convnext", "predict", "run", "image.jpg"],
    "convnext eval run --data folder": ["-m", "convnext", "eval", "run", "--data", "folder"],
}


def seconds(arguments: list[str], folder: str) -> tuple[float, float]:
    """Return the seconds of a fresh Python process: on the clock, and of the CPU."""
    started, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=folder)
    after = os.times()
    return time.perf_counter() - started, after.children_user + after.children_system - before.children_user - before.children_system


def prepare(folder: str) -> None:
    """Make a run, an image, and a folder of one image of each digit."""
    seconds(["-m", "convnext", "train", "digits", "--output", "run", "train.epochs=1", "train.warmup_epochs=0"], folder)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 400, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(Path(folder) / "image.jpg")
    for digit, one in enumerate(pixels):
        path = Path(folder) / "folder" / str(digit) / "image.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(one).save(path)


def main() -> None:
    """Measure and print a table."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        for _ in range(RUNS + 1):
            for name, arguments in COMMANDS.items():
                times[name].append(seconds(arguments, folder))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}")
    # The first of each warms the disk cache.
    medians = {name: [statistics.median(one[kind] for one in found[1:]) for kind in (0, 1)] for name, found in times.items()}
    for name, found in medians.items():
        wall, cpu = (one / base for one, base in zip(found, medians["import torch"], strict=True))
        print(f"{name:36} {found[0]:6.2f} s   {wall:5.2f} x import torch   CPU {found[1]:6.2f} s   {cpu:5.2f} x")


if __name__ == "__main__":
    main()
