"""Export in 8 bits: observe a network's values on some images, rewrite its graph, and compare both on other images."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from convnext import tasks
from convnext.data.images import ImageLike, Reading, read_image
from convnext.errors import ConvnextError, CorruptImageError, UsageError
from convnext.evaluate import evaluate_loaded
from convnext.export import qdq
from convnext.export.load import load
from convnext.export.runtimes import open_exported
from convnext.export.targets import WRITERS_OF_ONNX
from convnext.models.load import Loaded
from convnext.tasks.base import Prediction
from convnext.tasks.exported import ExportedNetwork
from convnext.text import printable

log = logging.getLogger("convnext")

LEAST, MOST = 10, 300  # images
AGREEMENT = 0.9  # of the predictions, the mean over the images compared; a file below this is not kept
_EVERY = 3  # every third image is compared, the others calibrate
_SECONDS, _ROUNDS = 3.0, 5  # of timing, at least so many rounds
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Quantized:
    """What a file of 8 bits loses and gains, against the same network in float32 in the same runtime."""

    agreement: float  # of its predictions with the network's, 0 to 1
    calibrated: int  # images that gave the ranges
    compared: int  # other images, that gave the agreement
    float32_bytes: int
    images_per_second: float  # one at a time, of the file
    float32_images_per_second: float
    metrics: str | None = None  # on labelled images, of the file
    float32_metrics: str | None = None  # of the network


def quantize(
    loaded: Loaded, whole: Path, to: str, output: Path, images: Sequence[ImageLike], data: str | None, report: Callable[[str], object]
) -> Quantized:
    """Write the file `output` of 8 bits from the ONNX file `whole` of the same network in float32.

    Args:
        loaded: the network.
        to: a key of `WRITERS_OF_ONNX`.
        images: at least `LEAST`, of the kind that the network is for; at most `MOST` are used, evenly spread.
        data: labelled images to evaluate both on; None for no evaluation.
        report: called with what is being done.

    Raises ConvnextError if the two agree too little, or if no images can be read; UsageError for a network without products to quantize.
    """
    chosen = [images[i] for i in np.linspace(0, len(images) - 1, min(len(images), MOST)).astype(int)]
    others, calibration = chosen[1::_EVERY], [image for i, image in enumerate(chosen) if i % _EVERY != 1]
    report(f"calibrating on {len(calibration)} images")
    count = _write(loaded, whole, to, output, calibration)
    report(f"comparing on {len(others)} other images")
    reference = whole if to == "onnx" else whole.with_suffix(output.suffix)
    if to != "onnx":
        WRITERS_OF_ONNX[to](whole, reference)
    agreement, compared, speeds = _compare(loaded, reference, output, others)
    if agreement < AGREEMENT:
        raise ConvnextError(
            f"in int8 its predictions for {compared} images agree with the network's to {agreement:.1%}, and {AGREEMENT:.0%} is required: "
            "calibrate with more images of the kind that it will see, or leave out --precision int8"
        )
    lines: list[str | None] = [None, None]
    if data is not None:
        report("evaluating")
        lines = [evaluate_loaded(one, data, None, 0, 0.01, _CPU).summary_line() for one in (loaded, load(output))]
    size = reference.stat().st_size + (reference.with_suffix(".bin").stat().st_size if to == "openvino" else 0)
    return Quantized(agreement, count, compared, size, speeds[1], speeds[0], lines[1], lines[0])


def _write(loaded: Loaded, whole: Path, to: str, output: Path, images: Sequence[ImageLike]) -> int:
    """Write the file of 8 bits. Returns the number of images that it was calibrated on."""
    import onnx

    model = onnx.load(whole)
    names = list(dict.fromkeys(node.input[0] for node in qdq.products(model)))
    if not names:
        name = loaded.model.spec["name"]
        raise UsageError(f"{name} has no linear layers in its blocks, which --precision int8 quantizes: use --precision fp16 or float32")
    observed, count = _observe(loaded, model, names, whole.with_name("observed.onnx"), images)
    qdq.quantize(model, qdq.smooth(model, observed))
    written = whole.with_name("int8.onnx")
    onnx.save(model, written)
    WRITERS_OF_ONNX[to](written, output)
    return count


def _observe(
    loaded: Loaded, model: qdq.Model, names: Sequence[str], file: Path, images: Sequence[ImageLike]
) -> tuple[dict[str, qdq.Observed], int]:
    """Return what values of these names are in a graph for each image, and the number of images that could be read."""
    qdq.write_observed(model, names, file)
    observed = load(file)
    network = observed.model
    assert isinstance(network, ExportedNetwork)
    low: dict[str, list[Tensor]] = {name: [] for name in names}
    high: dict[str, list[Tensor]] = {name: [] for name in names}
    run = network.runner

    def runner(*inputs: Tensor) -> Sequence[Tensor]:
        outputs = run(*inputs)
        for name, value in zip(names, outputs[-len(names) :], strict=True):
            rows = value.flatten(0, -2)
            if len(rows):
                low[name].append(rows.amin(0))
                high[name].append(rows.amax(0))
        return outputs[: -len(names)]

    network.runner = runner
    count = sum(_predicted(observed, loaded, image) is not None for image in images)
    if not count or not all(low.values()):
        raise ConvnextError("no image could be read to calibrate with: give --calibration images like those to be predicted")
    return {name: qdq.Observed(torch.stack(low[name]).numpy(), torch.stack(high[name]).numpy()) for name in names}, count


def _compare(loaded: Loaded, whole: Path, file: Path, images: Sequence[ImageLike]) -> tuple[float, int, list[float]]:
    """Return the mean agreement of the file with the network, on how many images, and the speeds of both files, `whole` first."""
    rules, exported, agreements, last = tasks.get(loaded.task).export(), load(file), list[float](), list[tuple[Tensor, ...]]()
    network = exported.model
    assert isinstance(network, ExportedNetwork)
    run = network.runner

    def runner(*inputs: Tensor) -> Sequence[Tensor]:
        last[:] = [inputs]
        return run(*inputs)

    network.runner = runner
    for image in images:
        expected = _predicted(loaded, loaded, image)
        if expected is not None and (found := _predicted(exported, loaded, image)) is not None:
            agreements.append(rules.agreement(expected, found))
    if not agreements:
        raise ConvnextError("no image could be read to compare with: give --calibration images like those to be predicted")
    reference, _ = open_exported(whole)
    return sum(agreements) / len(agreements), len(agreements), _speeds([reference.runner, run], last[0])


def _predicted(network: Loaded, names: Loaded, image: ImageLike) -> Prediction | None:
    """Return what a network says of an image, with the class names of `names`; None, with a warning, for one that can't be read."""
    task = tasks.get(network.task)
    classes = names.classes or task.class_names(names.model.num_classes)
    try:
        opened = read_image(image, how=Reading(network.preprocessing.channels))
    except CorruptImageError as error:
        log.warning("skipped: %s", printable(str(error)))
        return None
    return task.infer(network.model, [opened], network.preprocessing, classes, _CPU)[0]


def _speeds(runners: Sequence[Callable[..., object]], inputs: tuple[Tensor, ...]) -> list[float]:
    """Return how many images a second each computes: medians of interleaved rounds."""
    times: list[list[float]] = [[] for _ in runners]
    until = time.perf_counter() + _SECONDS
    while len(times[0]) < 1 + _ROUNDS or time.perf_counter() < until:
        for runner, taken in zip(runners, times, strict=True):
            start = time.perf_counter()
            runner(*inputs)
            taken.append(time.perf_counter() - start)
    return [len(inputs[0]) / median(taken[1:]) for taken in times]  # the first round allocates memory
