"""Measure what 8 bits cost in accuracy: a trained network as it is, by `convnext.optimize`, in the files of `convnext export`, and as
ONNX Runtime's quantization and NNCF (for OpenVINO) do it by their defaults.

    python benchmarks/int8.py RUN DATA CALIBRATION [--images 300]

RUN is a run folder of a classifier, DATA its validation images, CALIBRATION images of the same kind on which it was not validated. All
quantizers get the same calibration images, of which `convnext export` compares every third instead. Prints top-1 of each, and the
fraction of images on which it agrees with float32.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import torch
from torch import Tensor

import convnext
from convnext.data.sources.open import open_source
from convnext.inference.predictor import Predictor
from convnext.tasks.classify.prediction import prepared_batch

BATCH = 100
Run = Callable[[Tensor], Tensor]


def batches(predictor: Predictor, where: str, count: int | None = None) -> list[tuple[Tensor, np.ndarray]]:
    """Return prepared images (N, C, H, W) and labels, evenly spread over the data if only some are asked for."""
    source = open_source(where, predictor.classes)
    chosen = range(len(source)) if count is None else np.linspace(0, len(source) - 1, count).astype(int)
    found = []
    for first in range(0, len(chosen), BATCH):
        indices = [int(index) for index in chosen[first : first + BATCH]]
        images = prepared_batch([predictor.open(source.read(index)) for index in indices], predictor.preprocessing, torch.device("cpu"))
        found.append((images, np.array([source.label(index) for index in indices])))
    return found


def by_nncf(network: torch.nn.Module, calibration: list[tuple[Tensor, np.ndarray]]) -> Run:
    """Return the network as NNCF quantizes it by default, computed by OpenVINO."""
    import nncf

    images = [image[None].numpy() for batch, _ in calibration for image in batch]
    converted = openvino.convert_model(network, example_input=calibration[0][0])
    compiled = openvino.compile_model(nncf.quantize(converted, nncf.Dataset(images), subset_size=len(images)), "CPU")
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def by_onnxruntime(folder: Path, run: str, calibration: list[tuple[Tensor, np.ndarray]]) -> Run:
    """Return the network's ONNX file as onnxruntime.quantization quantizes it by default."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{"images": image[None].contiguous().numpy()} for batch, _ in calibration for image in batch])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    convnext.export(run, "onnx", folder / "float32.onnx")
    quantize_static(folder / "float32.onnx", folder / "theirs.onnx", Reader())
    session = onnxruntime.InferenceSession(folder / "theirs.onnx", providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.contiguous().numpy()})[0])


def exported(file: Path, run: str, to: str, predictor: Predictor, where: str, count: int) -> Run:
    """Return the network of a file of `convnext export --precision int8`."""
    source = open_source(where, predictor.classes)
    images = [source.read(int(index)) for index in np.linspace(0, len(source) - 1, count).astype(int)]
    convnext.export(run, to, file, precision="int8", calibration=images)
    return convnext.load(file, device="cpu").model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("calibration")
    parser.add_argument("--images", type=int, default=300)
    options = parser.parse_args()
    predictor = convnext.load(options.run, device="cpu")
    data, calibration = batches(predictor, options.data), batches(predictor, options.calibration, options.images)

    def calibrate(network: torch.nn.Module) -> None:
        for images, _ in calibration:
            network(images)

    networks: dict[str, Run] = {
        "float32, as it is": predictor.model,
        "float32, optimize": convnext.optimize(predictor.model, "float32"),
        "int8, optimize": convnext.optimize(predictor.model, "int8", calibration=calibrate),
        "int8, NNCF and OpenVINO": by_nncf(predictor.model, calibration),
    }
    folder = Path(tempfile.mkdtemp())
    networks["int8, onnxruntime.quantization"] = by_onnxruntime(folder, options.run, calibration)
    for to, name in (("onnx", "int8.onnx"), ("openvino", "int8.xml")):
        networks[f"int8, export to {to}"] = exported(folder / name, options.run, to, predictor, options.calibration, options.images)
    wanted = None
    for name, network in networks.items():
        with torch.inference_mode():
            found = np.concatenate([network(images).argmax(1).numpy() for images, _ in data])
        wanted = found if wanted is None else wanted
        labels = np.concatenate([labels for _, labels in data])
        print(f"| {name} | {100 * np.mean(found == labels):.2f} % | {100 * np.mean(found == wanted):.2f} % | {len(labels)} |", flush=True)


if __name__ == "__main__":
    main()
