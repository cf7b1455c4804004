"""Measure how large and how fast files of `convnext export --precision int8` are, against float32 in the same runtime.

    python benchmarks/int8_speed.py MODEL CALIBRATION [--size 64] [--rounds 40]

MODEL is a run folder, a weight file, or the name of a network (random weights), CALIBRATION a dataset of images like those to come.
Prints the size, and CPU milliseconds of one thread for each image: medians of interleaved rounds, alone and in batches of 8.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

import convnext
from convnext.data.sources.open import open_source
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.export import int8
from convnext.models.weights.files import write_weights

ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}


def source_of(name: str, folder: Path) -> str:
    """Return a run folder or weight file as it is, and a weight file of random weights for the name of a network."""
    if Path(name).exists():
        return name
    torch.manual_seed(0)
    model = convnext.create_model(name)
    about = {"task": "classify", "model": model.spec, "preprocessing": ClassifyPreprocessing().to_json()}
    write_weights(folder / "random.safetensors", model.state_dict(), about)
    return str(folder / "random.safetensors")


def milliseconds(files: list[Path], size: int, batch: int, rounds: int) -> list[float]:
    """Return CPU milliseconds of one thread for each image of each file."""
    networks = [convnext.load(file, device="cpu").model for file in files]
    times: list[list[float]] = [[] for _ in files]
    x = torch.randn(batch, 3, size, size)
    for _ in range(rounds + 3):
        for network, taken in zip(networks, times, strict=True):
            start = time.process_time()
            network(x)
            taken.append(1e3 * (time.process_time() - start) / batch)
    return [median(taken[3:]) for taken in times]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    int8.AGREEMENT = 0.0  # networks of random weights have hardly any
    images = open_source(options.calibration, None)
    chosen = [images.read(int(index)) for index in np.linspace(0, len(images) - 1, 60).astype(int)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = source_of(options.model, folder)
        for to, ending in ENDINGS.items():
            files = [folder / f"{precision}{ending}" for precision in ("float32", "int8")]
            convnext.export(source, to, files[0], size=options.size)
            found = convnext.export(source, to, files[1], size=options.size, precision="int8", calibration=chosen)
            assert found.int8 is not None
            print(f"{to}: {found.bytes / 1e6:.2f} MB, {found.bytes / found.int8.float32_bytes:.1%} of float32's", flush=True)
            for batch in (1, 8):
                float32, quantized = milliseconds(files, options.size, batch, options.rounds)
                print(f"| {to} | {batch} | {float32:.2f} | {quantized:.2f} | {float32 / quantized:.2f} |", flush=True)


if __name__ == "__main__":
    main()
