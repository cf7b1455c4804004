"""Export a network as a file for other runtimes; the file is kept only if it computes the same there."""

import copy
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from convnext import __version__, tasks
from convnext.data.images import ImageLike
from convnext.data.transforms.preprocessing import ImageSize
from convnext.errors import ConvnextError, UsageError, disk_full, first_line, is_disk_full, nearest
from convnext.export import check
from convnext.export.graphs import DTYPES, ExportGraph, Form, refuse_overflow, trace
from convnext.export.int8 import LEAST, Quantized, quantize
from convnext.export.load import load
from convnext.export.runtimes import open_exported
from convnext.export.targets import WRITERS, WRITERS_OF_ONNX, Traced
from convnext.export.triton import write_config
from convnext.models.load import Loaded
from convnext.models.weights.files import with_imports, write_weights
from convnext.tasks.exported import ExportedDescription, ExportedNetwork, TaskExport

log = logging.getLogger("convnext")

TARGETS = (*WRITERS, "safetensors")
NO_BF16 = {
    "onnx": "ONNX Runtime has no products in bf16 on CPUs: use --precision fp16, or --to torch or aoti",
    "openvino": "OpenVINO computes in bf16 where the CPU can, whatever the file holds: --precision fp16 halves the file",
}  # by format, why it is not offered
Report = Callable[[str], object]  # called with what is being done


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how close it is to the network."""

    file: str
    to: str
    task: str
    precision: str
    pixels: bool  # whether it takes uint8 pixels
    size: list[int] | None  # (height, width) it takes; None for any
    relative_error: float  # of int8: of its graph before it was rounded
    bytes: int
    remarks: list[str]  # to report to the user
    int8: Quantized | None = None


def export(
    source: str | Path,
    to: str,
    output: str | Path,
    *,
    weights: str | None = None,
    size: ImageSize | None = None,
    precision: str = "float32",
    calibration: Sequence[ImageLike] = (),
    data: str | None = None,
    with_preprocessing: bool = False,
    paste_masks: bool = False,
    triton: bool = False,
    network: nn.Module | None = None,
    report: Report = lambda message: None,
) -> ExportResult:
    """Write a network in the format `to`, run the file, compare, and only then put it in place.

    Args:
        source, weights, network: as for `convnext.load`.
        to: one of `TARGETS`.
        output: the file, with the format's ending.
        size: pixels a side, or (height, width), to trace with, and to fix where the file can't take any size; by default the
            network's own.
        precision: "float32", "fp16", "bf16" (torch and aoti) or "int8" (onnx and openvino).
        calibration: for int8, at least `int8.LEAST` images like those to come, of which `int8.MOST` are used.
        data: for int8, labelled images to evaluate the network and the file on.
        with_preprocessing: let the file take uint8 images (N, H, W, C), in RGB if C is 3, and normalise them itself.
        paste_masks: let the file of a detector also give masks in pixels of its images, `pasted`.
        triton: also write `config.pbtxt` beside an ONNX file, for Triton Inference Server.
        report: called with what is being done.

    Raises UsageError for options that make no sense, ConvnextError if the file computes something else or overflows. Nothing is written
    then.
    """
    output = Path(output)
    _check(to, output, precision, with_preprocessing or paste_masks, size)
    _check_more(to, precision, calibration, data, triton)
    loaded, rules = _load(source, weights, network, size, precision)
    if to == "safetensors":
        return _write_safetensors(loaded, output, network)
    form = Form(precision, with_preprocessing, rules.size(loaded.preprocessing, size), paste_masks=paste_masks)
    if precision in rules.refused:
        raise UsageError(rules.refused[precision])
    if precision == "fp16":
        report("looking for overflow")
        _refuse_overflow(loaded, form)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".export-") as folder:
        file, quantized = Path(folder) / output.name, None
        if precision == "int8":
            whole = Path(folder) / "float32" / "model.onnx"
            whole.parent.mkdir()
            form, error, remarks = _write(loaded, form, "onnx", whole, report)
            quantized = quantize(loaded, whole, to, file, calibration, data, report)
        else:
            form, error, remarks = _write(loaded, form, to, file, report)
        if triton:
            write_config(file)
        _put_in_place(Path(folder), output)
    parts = (output, output.with_suffix(".bin")) if to == "openvino" else (output,)
    fixed, size_in_bytes = None if form.dynamic else list(form.size), sum(part.stat().st_size for part in parts)
    return ExportResult(str(output), to, loaded.task, precision, with_preprocessing, fixed, error, size_in_bytes, remarks, quantized)


def _load(
    source: str | Path, weights: str | None, network: nn.Module | None, size: ImageSize | None, precision: str
) -> tuple[Loaded, TaskExport]:
    """Return the network, with the preprocessing and calibration that its file will state, and the rules of its task."""
    loaded = load(source, weights, network)
    if isinstance(loaded.model, ExportedNetwork):
        raise UsageError(f"{source} is an exported file: export the checkpoint that it was made from")
    rules = tasks.get(loaded.task).export()
    if size is not None:
        how, loaded.preprocessing = loaded.preprocessing, rules.resized(loaded.preprocessing, size)
        if loaded.calibration is not None and loaded.preprocessing != how:
            loaded.calibration = None
            log.warning("%s: its calibration is of images of another size, so the exported file has none", source)
    if precision == "int8" and loaded.calibration is not None:
        loaded.calibration = None
        log.warning("%s: its calibration is of probabilities in float32, so the file in int8 has none", source)
    return loaded, rules


def _check(to: str, output: Path, precision: str, with_more: bool, size: ImageSize | None) -> None:
    if to not in TARGETS:
        raise UsageError(f"unknown export format {to!r}{nearest(to, TARGETS)}")
    ending = ".safetensors" if to == "safetensors" else WRITERS[to][0]
    if output.suffix != ending:
        raise UsageError(f"--output {output}: the name of a file exported to {to} ends in {ending}")
    if precision not in DTYPES:
        raise UsageError(f"unknown precision {precision!r}{nearest(precision, DTYPES)}")
    if precision == "bf16" and to in NO_BF16:
        raise UsageError(f"--precision bf16 is not for --to {to}: {NO_BF16[to]}")
    if to == "safetensors" and (precision != "float32" or with_more or size is not None):
        raise UsageError(
            "safetensors holds weights as they are: --precision, --with-preprocessing, --paste-masks and --size apply to graphs only"
        )


def _check_more(to: str, precision: str, calibration: Sequence[ImageLike], data: str | None, triton: bool) -> None:
    if triton and to != "onnx":
        raise UsageError("--triton is for --to onnx")
    if precision != "int8":
        if calibration or data is not None:
            raise UsageError("--calibration and --data are for --precision int8")
        return
    if to not in WRITERS_OF_ONNX:
        raise UsageError(f"--precision int8 is for --to {' and '.join(WRITERS_OF_ONNX)}, not for {to}")
    if len(calibration) < LEAST:
        raise UsageError(f"--precision int8 needs --calibration with at least {LEAST} images like those to be predicted")


def describe(loaded: Loaded) -> dict[str, object]:
    """Return what a file says of a network: the arguments that rebuild it, its class names, and its preprocessing."""
    return {
        "task": loaded.task,
        "model": loaded.model.spec,
        "classes": loaded.classes,
        "preprocessing": loaded.preprocessing.to_json(),
    } | {key: value for key in ("class_ids", "source") if (value := getattr(loaded, key)) is not None}


def _describe_graph(loaded: Loaded, form: Form, network: nn.Module) -> ExportedDescription:
    count, rules = loaded.model.num_classes, tasks.get(loaded.task).export()
    graph: dict[str, object] = {
        "precision": form.precision,
        "pixels": form.pixels,
        "size": None if form.dynamic else list(form.size),
        "num_classes": count,
        "inputs": list(rules.inputs),
        "outputs": rules.outputs(network),
    } | ({"defaults": dict(rules.defaults)} if rules.defaults else {})
    # `classes` stays as in the weights, so that evaluation treats the file like them; `labels` is for programs that show predictions.
    labels = loaded.classes if loaded.classes is not None else rules.known_names(count)
    about = with_imports(describe(loaded)) | {"labels": labels, "graph": graph, "convnext": __version__}
    if loaded.calibration is not None:  # without its reference: a graph gives no embeddings to compare
        about["calibration"] = loaded.calibration.to_json()
    return cast(ExportedDescription, about)


def _write(loaded: Loaded, form: Form, to: str, file: Path, report: Report) -> tuple[Form, float, list[str]]:
    """Write and compare, for images of any size if that works, else of one size. Returns the form that worked, its error and remarks."""
    # If a module says that it takes one size only, no other is tried: PyTorch would try for minutes.
    reason = next((module.one_size_in_graphs for module in loaded.model.modules() if hasattr(module, "one_size_in_graphs")), "")
    cause: Exception | None = None
    if not reason:
        try:
            return form, _attempt(loaded, form, to, file, report), []
        except UsageError:
            raise
        except Exception as error:  # tracing, writing or running the file may fail for other sizes
            reason, cause = first_line(error), error
            log.debug("no graph for images of any size", exc_info=error)
    if not tasks.get(loaded.task).export().can_fix_size:
        raise ConvnextError(f"{loaded.model.spec['name']} can't be exported to {to}: {reason}") from cause
    report(f"not for images of any size ({reason})")
    form = replace(form, dynamic=False)
    remark = f"takes images of {form.size[0]} x {form.size[1]} pixels only: {reason}"
    try:
        return form, _attempt(loaded, form, to, file, report), [remark]
    except UsageError:
        raise
    except Exception as error:
        raise ConvnextError(f"{loaded.model.spec['name']} can't be exported to {to}: {first_line(error)}") from error


def _attempt(loaded: Loaded, form: Form, to: str, file: Path, report: Report) -> float:
    # OpenVINO's own fp16 is a file of half the size, whose arithmetic each device chooses: its graph stays float32.
    in_graph = replace(form, precision="float32") if to == "openvino" else form
    report("tracing")
    graph = ExportGraph(loaded, in_graph)
    traced = Traced(trace(graph, in_graph), graph.rules.inputs, _describe_graph(loaded, form, graph.network))
    report(f"writing {to}")
    WRITERS[to][1](traced, file)
    del graph, traced
    report("comparing")
    network, _ = open_exported(file, trusted=True)
    return check.compare(loaded, network, form)


def _refuse_overflow(loaded: Loaded, form: Form) -> None:
    graph = ExportGraph(loaded, replace(form, pixels=True))
    for kind in check.pixels(1, *form.size, 0, loaded.preprocessing.channels):
        refuse_overflow(graph, kind.permute(0, 2, 3, 1))


def _write_safetensors(loaded: Loaded, output: Path, network: nn.Module | None) -> ExportResult:
    write_weights(output, loaded.model.state_dict(), describe(loaded), loaded.calibration)
    again = load(output, network=copy.deepcopy(network)).model.state_dict()
    if not all(torch.equal(tensor, again[name]) for name, tensor in loaded.model.state_dict().items()):
        raise ConvnextError(f"{output} does not hold the weights that were written: check the disk")
    return ExportResult(str(output), "safetensors", loaded.task, "float32", False, None, 0.0, output.stat().st_size, [])


def _put_in_place(folder: Path, output: Path) -> None:
    """Move the files that were written, `output` last: its presence says that the others are there."""
    try:
        for part in sorted(folder.iterdir(), key=lambda part: part.name == output.name):
            if part.is_file():
                shutil.move(part, output.absolute().parent / part.name)
    except OSError as error:
        raise (disk_full(output) if is_disk_full(error) else ConvnextError(f"could not write {output}: {error}")) from error
