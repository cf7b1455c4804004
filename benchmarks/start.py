"""Measure start-up times: `import convnext` beside `import torch`, `convnext --help`, and counting the largest model.

    python benchmarks/start.py

Each time is the median of several fresh processes, interleaved.
"""

import statistics
import subprocess
import sys
import time

RUNS = 7
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import convnext": ["-c", "import convnext"],
    "from convnext import create_model": ["-c", "from convnext import create_model"],
    "convnext --help": ["-m", "convnext", "--help"],
    "convnext cost convnext_xlarge": ["-m", "convnext", "cost", "convnext_xlarge"],
}


def seconds(arguments: list[str]) -> float:
    """Return the wall time of a fresh Python process in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print a table."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS + 1):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}  # the first warms the disk cache
    for name, median in medians.items():
        print(f"{name:36} {median:6.2f} s   {median / medians['import torch']:5.2f} x import torch")


if __name__ == "__main__":
    main()
