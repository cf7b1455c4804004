"""Writing a traced graph as a file: one function a format, each (program, description, file)."""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from convnext.errors import UsageError, need
from convnext.models.weights.files import OWN_METADATA

Description = dict[str, Any]

_FLOAT, _BOOL = 1, 9  # ONNX's numbers of types
INPUTS = ("images", "size", "threshold")


def write_onnx(program: ExportedProgram, description: Description, file: Path) -> None:
    """ONNX, opset 20, weights within the file; the description is in its metadata."""
    need("onnxscript", "export")
    need("onnx", "export")
    with _quiet():
        written: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=20,
            output_names=description["graph"]["outputs"],
            custom_translation_table={torch.ops.convnext.keep.default: _keep},
            verbose=False,
        )
    for value, name in zip(written.model.graph.inputs, INPUTS, strict=False):
        value.name = name
    written.model.metadata_props[OWN_METADATA] = json.dumps(description)
    written.save(str(file), external_data=False)


def write_openvino(program: ExportedProgram, description: Description, file: Path) -> None:
    """OpenVINO's .xml with the .bin of its weights, by way of ONNX; the description is in the model's `rt_info`."""
    openvino = need("openvino", "export")
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as folder:
        between = Path(folder) / "model.onnx"
        write_onnx(program, description, between)
        model = openvino.convert_model(str(between))
        model.set_rt_info(json.dumps(description), OWN_METADATA)
        openvino.save_model(model, str(file), compress_to_fp16=description["graph"]["precision"] == "fp16")


def write_torch(program: ExportedProgram, description: Description, file: Path) -> None:
    """An archive of torch.export; the description is an extra file in it."""
    with _quiet():
        torch.export.save(program, file, extra_files={OWN_METADATA: json.dumps(description)})


def write_aoti(program: ExportedProgram, description: Description, file: Path) -> None:
    """A package of AOTInductor: native code for this kind of CPU; the description is in its metadata."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise UsageError("--to aoti compiles C++ and found no compiler: install g++ (apt install g++), or name one in CXX") from error
    settings = {"aot_inductor.metadata": {OWN_METADATA: json.dumps(description)}}
    with _quiet():
        aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)


WRITERS: dict[str, tuple[str, Callable[[ExportedProgram, Description, Path], None]]] = {
    "onnx": (".onnx", write_onnx),
    "openvino": (".xml", write_openvino),
    "torch": (".pt2", write_torch),
    "aoti": (".pt2", write_aoti),
}


def _keep(boxes: Any, scores: Any, iou: float, threshold: Any) -> Any:
    """`convnext::keep` in ONNX, whose operator takes a batch of lists, too, but returns (kept, 3) indices: list, class, box."""
    import onnx
    from onnxscript import opset20 as op

    one = op.Constant(value=onnx.helper.make_tensor("one", _FLOAT, [1], [1.0]))
    count = op.Shape(scores, start=1, end=2)
    found = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, [1]), count, op.Constant(value_float=iou), op.Reshape(threshold, [1]))
    places = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Expand(one, op.Shape(places, start=0, end=1))
    return op.Cast(op.ScatterND(op.ConstantOfShape(op.Shape(scores)), places, ones), to=_BOOL)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporters tell of their own workings in warnings, in the log and on both streams: nothing that a user could act on.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
