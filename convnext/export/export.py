"""`convnext export`: a network as a file for other runtimes, kept only if it computes the same there."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from convnext import __version__
from convnext.data import imagenet
from convnext.errors import ConvnextError, UsageError, first_line, nearest
from convnext.export import check
from convnext.export.graphs import DTYPES, Form, Graph, outputs_of, refuse_overflow, trace
from convnext.export.load import load
from convnext.export.runtimes import Network, open_exported
from convnext.export.targets import WRITERS
from convnext.models.load import Loaded
from convnext.models.weights.files import write_weights

log = logging.getLogger("convnext")

TARGETS = (*WRITERS, "safetensors")
_DETECTOR_SIDE = 320  # pixels: a size to trace and compare at, any other is taken as well


@dataclass(frozen=True)
class Exported:
    """What was written, and how near it is to the network."""

    file: str
    to: str
    task: str
    precision: str
    pixels: bool  # whether it takes uint8 pixels
    size: list[int] | None  # (height, width) it takes; None for any
    relative_error: float
    bytes: int
    remarks: list[str]  # to be told to the user


def export(
    source: str | Path,
    to: str,
    output: Path,
    *,
    weights: str | None = None,
    size: int | None = None,
    precision: str = "float32",
    with_preprocessing: bool = False,
    tell: Callable[[str], object] = lambda line: None,
) -> Exported:
    """Write a network of `models.load` in the format `to`, run the file, compare, and only then put it in place.

    Args:
        source, weights: as for `models.load`.
        to: one of `TARGETS`.
        output: the file, of the format's ending.
        size: pixels a side that it is traced with, and made for where it can't take any size; by default the network's own.
        precision: "float32" or "fp16".
        with_preprocessing: let the file take uint8 RGB images (N, H, W, 3) at the network's size, and normalise them itself.
        tell: called with what is being done.

    Raises UsageError for what makes no sense, ConvnextError if the file computes something else or overflows; nothing is written then.
    """
    _check(to, output, precision, with_preprocessing, size)
    loaded = load(source, weights)
    if isinstance(loaded.model, Network):
        raise UsageError(f"{source} is an exported file: export the checkpoint that it was made of")
    if size is not None and loaded.task == "classify":
        loaded.preprocessing = replace(loaded.preprocessing, image_size=size)
    if to == "safetensors":
        return _write_safetensors(loaded, output)
    form = Form(precision, with_preprocessing, _traced_size(loaded, size))
    if precision == "fp16":
        if loaded.task == "detect":
            raise UsageError(
                "detectors are exported in float32 only: which of two near boxes is kept hangs on the last bits of their scores, "
                "so that a file in fp16 finds other objects here and there, and could not be checked"
            )
        tell("looking for overflow")
        _refuse_overflow(loaded, form)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".export-") as folder:
        file = Path(folder) / output.name
        form, error, remarks = _write(loaded, form, to, file, tell)
        _put_in_place(Path(folder), output)
    parts = (output, output.with_suffix(".bin")) if to == "openvino" else (output,)
    fixed = None if form.dynamic else list(form.size)
    return Exported(
        str(output), to, loaded.task, precision, with_preprocessing, fixed, error, sum(part.stat().st_size for part in parts), remarks
    )


def _check(to: str, output: Path, precision: str, with_preprocessing: bool, size: int | None) -> None:
    if to not in TARGETS:
        raise UsageError(f"no export format is called {to!r}{nearest(to, TARGETS)}")
    ending = ".safetensors" if to == "safetensors" else WRITERS[to][0]
    if output.suffix != ending:
        raise UsageError(f"{output}: the name of what is exported to {to} ends in {ending}")
    if precision not in DTYPES:
        raise UsageError(f"no precision is called {precision!r}{nearest(precision, DTYPES)}")
    if to == "safetensors" and (precision != "float32" or with_preprocessing or size is not None):
        raise UsageError("safetensors holds weights as they are: --precision, --with-preprocessing and --size are for graphs")


def describe(loaded: Loaded) -> dict[str, Any]:
    """What a file says of a network: all that rebuilds it, the names of its classes, and how it wants its images."""
    return {
        "task": loaded.task,
        "model": loaded.model.spec,
        "classes": loaded.classes,
        "preprocessing": loaded.preprocessing.to_json(),
    } | {key: value for key in ("class_ids", "source") if (value := getattr(loaded, key)) is not None}


def _describe_graph(loaded: Loaded, form: Form) -> dict[str, Any]:
    count = loaded.model.num_classes
    names = loaded.classes
    if names is None and loaded.task == "classify" and count in imagenet.SUBSETS:
        names = imagenet.descriptions(count)
    graph = {
        "precision": form.precision,
        "pixels": form.pixels,
        "size": None if form.dynamic else list(form.size),
        "num_classes": count,
        "outputs": outputs_of(loaded),
    }
    # `classes` stays as it was, for evaluation to treat the file as the weights; `labels` is for whoever shows predictions.
    return describe(loaded) | {"labels": names, "graph": graph, "convnext": __version__}


def _traced_size(loaded: Loaded, size: int | None) -> tuple[int, int]:
    if loaded.task == "classify":
        side = loaded.preprocessing.image_size
    elif loaded.task == "segment":
        side = size or loaded.preprocessing.window or 512
    else:
        side = -(-(size or _DETECTOR_SIDE) // 32) * 32
    return side, side


def _write(loaded: Loaded, form: Form, to: str, file: Path, tell: Callable[[str], object]) -> tuple[Form, float, list[str]]:
    """Write and compare, for images of any size if that works and else of one; returns what worked."""
    # Where a module says so it is believed: PyTorch would try for minutes.
    reason = next((module.one_size_in_graphs for module in loaded.model.modules() if hasattr(module, "one_size_in_graphs")), "")
    cause: Exception | None = None
    if not reason:
        try:
            return form, _attempt(loaded, form, to, file, tell), []
        except UsageError:
            raise
        except Exception as error:  # what stands in the way of any size shows in tracing, in writing or only in running the file
            reason, cause = first_line(error), error
            log.debug("no graph for images of any size", exc_info=error)
    if loaded.task == "detect":
        raise ConvnextError(f"{loaded.model.spec['name']} can't be exported to {to}: {reason}") from cause
    tell(f"not for images of any size ({reason})")
    form = replace(form, dynamic=False)
    told = f"takes images of {form.size[0]} x {form.size[1]} pixels only: {reason}"
    try:
        return form, _attempt(loaded, form, to, file, tell), [told]
    except UsageError:
        raise
    except Exception as error:
        raise ConvnextError(f"{loaded.model.spec['name']} can't be exported to {to}: {first_line(error)}") from error


def _attempt(loaded: Loaded, form: Form, to: str, file: Path, tell: Callable[[str], object]) -> float:
    # OpenVINO's own fp16 is a file of half the size, whose arithmetic each device chooses: its graph stays float32.
    traced = replace(form, precision="float32") if to == "openvino" else form
    tell("tracing")
    program = trace(Graph(loaded, traced), traced)
    tell(f"writing {to}")
    WRITERS[to][1](program, _describe_graph(loaded, form), file)
    del program
    tell("comparing")
    network, _ = open_exported(file, trusted=True)
    return check.compare(loaded, network, form)


def _refuse_overflow(loaded: Loaded, form: Form) -> None:
    graph = Graph(loaded, replace(form, pixels=True))
    for kind in check.pixels(1, *form.size, seed=0):
        refuse_overflow(graph, kind.permute(0, 2, 3, 1))


def _write_safetensors(loaded: Loaded, output: Path) -> Exported:
    write_weights(output, loaded.model.state_dict(), describe(loaded))
    again = load(output).model.state_dict()
    if not all(torch.equal(tensor, again[name]) for name, tensor in loaded.model.state_dict().items()):
        raise ConvnextError(f"{output} does not hold the weights that were written: check the disk")
    return Exported(str(output), "safetensors", loaded.task, "float32", False, None, 0.0, output.stat().st_size, [])


def _put_in_place(folder: Path, output: Path) -> None:
    """Move the file and what lies beside it, the file last, for it says that the rest is there."""
    try:
        for part in sorted(folder.iterdir(), key=lambda part: part.name == output.name):
            if part.is_file():
                shutil.move(part, output.absolute().parent / part.name)
    except OSError as error:
        raise ConvnextError(f"could not write {output}: {error}") from error
