"""Write a traced graph as a file: one function per format."""

import contextlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from convnext.errors import UsageError, need
from convnext.models.detection import fixed  # noqa: F401  # defines torch.ops.convnext.keep, the operator that graphs of detectors hold
from convnext.models.weights.files import OWN_METADATA
from convnext.tasks.exported import ExportedDescription, GraphDescription

Value = Any  # of onnxscript, which is not typed

_FLOAT, _BOOL = 1, 9  # ONNX's numbers of types


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph to be written."""

    program: ExportedProgram
    inputs: Sequence[str]  # their names, in order
    description: ExportedDescription


def write_onnx(traced: Traced, file: Path) -> None:
    """Write ONNX, opset 20, weights within the file; the description is in its metadata."""
    need("onnxscript", "export")
    need("onnx", "export")
    with _quiet():
        written = torch.onnx.export(
            traced.program,
            dynamo=True,
            opset_version=20,
            output_names=traced.description["graph"]["outputs"],
            custom_translation_table={torch.ops.convnext.keep.default: _keep},
            verbose=False,
        )
    assert written is not None  # it is for the older exporter alone
    for value, name in zip(written.model.graph.inputs, traced.inputs, strict=True):
        value.name = name
    _name_axes(written.model.graph, _axes(traced.description["graph"]))
    _remove_origins(written.model.graph)
    written.model.metadata_props[OWN_METADATA] = json.dumps(traced.description)
    written.save(str(file), external_data=False)


def write_openvino(traced: Traced, file: Path) -> None:
    """Write OpenVINO's .xml with the .bin of its weights, by way of ONNX; the description is in the model's `rt_info`."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as folder:
        between = Path(folder) / "model.onnx"
        write_onnx(traced, between)
        onnx_to_openvino(between, file)


def onnx_to_openvino(source: Path, file: Path) -> None:
    """Write OpenVINO's .xml and .bin from an ONNX file that `write_onnx` wrote, or that was made from one."""
    openvino, onnx = need("openvino", "export"), need("onnx", "export")
    text = {one.key: one.value for one in onnx.load(source).metadata_props}[OWN_METADATA]
    graph = json.loads(text)["graph"]
    model = openvino.convert_model(str(source))
    openvino.layout_helpers.set_layout(model.input(0), openvino.Layout(f"[{','.join(_axes(graph))}]"))
    model.set_rt_info(text, OWN_METADATA)
    openvino.save_model(model, str(file), compress_to_fp16=graph["precision"] == "fp16")


def write_torch(traced: Traced, file: Path) -> None:
    """Write an archive of torch.export; the description is an extra file in it."""
    with _quiet():
        torch.export.save(traced.program, file, extra_files={OWN_METADATA: json.dumps(traced.description)})


def write_aoti(traced: Traced, file: Path) -> None:
    """Write a package of AOTInductor: native code for this kind of CPU; the description is in its metadata."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise UsageError("--to aoti compiles C++ and found no compiler: install g++ (apt install g++), or name one in CXX") from error
    settings = {"aot_inductor.metadata": {OWN_METADATA: json.dumps(traced.description)}}
    with _quiet():
        aoti_compile_and_package(traced.program, package_path=str(file), inductor_configs=settings)


# By format: the ending of its files, and the function that writes one.
WRITERS: dict[str, tuple[str, Callable[[Traced, Path], None]]] = {
    "onnx": (".onnx", write_onnx),
    "openvino": (".xml", write_openvino),
    "torch": (".pt2", write_torch),
    "aoti": (".pt2", write_aoti),
}

# By format: the function that writes an ONNX file of ours in it.
WRITERS_OF_ONNX: dict[str, Callable[[Path, Path], object]] = {"onnx": shutil.copyfile, "openvino": onnx_to_openvino}


def _axes(graph: GraphDescription) -> tuple[str, ...]:
    """Return the names of the axes of the images that a graph takes."""
    return ("batch", "height", "width", "channels") if graph["pixels"] else ("batch", "channels", "height", "width")


def _name_axes(graph: Value, axes: Sequence[str]) -> None:
    """Name the axes of free size of an ONNX graph's images, and those of its other inputs and its outputs that have the same size."""
    images = graph.inputs[0].shape
    names = {str(images[i]): axis for i, axis in enumerate(axes) if not isinstance(images[i], int)}
    for value in (*graph.inputs, *graph.outputs):
        for i, length in enumerate(value.shape):
            value.shape[i] = names.get(str(length), length)


def _remove_origins(graph: Value) -> None:
    """Remove where in the source each part comes from: a third of a small file, and paths of this machine."""
    graph.metadata_props.clear()
    for node in graph:
        for part in (node, *node.outputs):
            part.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _keep(boxes: Value, scores: Value, iou: float, threshold: Value) -> Value:
    """Return `convnext::keep` in ONNX, whose operator takes a batch of lists too, but returns (kept, 3) indices: list, class, box."""
    import onnx
    from onnxscript import opset20 as op

    one = op.Constant(value=onnx.helper.make_tensor("one", _FLOAT, [1], [1.0]))
    count = op.Shape(scores, start=1, end=2)
    found = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, [1]), count, op.Constant(value_float=iou), op.Reshape(threshold, [1]))
    kept = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Expand(one, op.Shape(kept, start=0, end=1))
    return op.Cast(op.ScatterND(op.ConstantOfShape(op.Shape(scores)), kept, ones), to=_BOOL)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporters report on their own work in warnings, in the log and on both streams, with nothing that a user could act on.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
