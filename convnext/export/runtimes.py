"""Open what `convnext export` wrote, as a network with the signatures of the torch network it was made from.

ONNX and OpenVINO files are data, and opened like weights. A `.pt2` file is not: an archive of torch.export may hold pickles and
expressions that are evaluated, and a package of AOTInductor is native code. Such a file is opened only if `TRUST` is set.
"""

import os
import zipfile
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from convnext import tasks
from convnext.errors import ConvnextError, UsageError, first_line, need
from convnext.models.weights.description import parse
from convnext.models.weights.files import OWN_METADATA
from convnext.models.weights.known import check_known
from convnext.tasks.exported import ExportedDescription, ExportedNetwork, Runner

TRUST = "CONVNEXT_TRUST_PT2"  # the environment variable that allows opening .pt2 files


def open_exported(path: Path, trusted: bool = False) -> tuple[ExportedNetwork, ExportedDescription]:
    """Return the network of an exported file, and the file's description.

    Args:
        path: a file of one of the `ENDINGS` of `convnext.export.load`.
        trusted: open a `.pt2` file even if `TRUST` is not set.

    If the graph normalises, the description's `preprocessing` is one whose result is pixel values, 0 to 255.

    Raises ConvnextError if the file is missing, damaged or not ours, UsageError for a missing library or missing trust.
    """
    if not path.is_file():
        raise ConvnextError(f"no exported network {path}")
    if path.suffix == ".pt2" and not trusted and os.environ.get(TRUST) != "1":
        raise UsageError(
            f"{path} can run any code when it is opened; if you made it, or trust whoever did, set {TRUST}=1 (ONNX needs no trust)"
        )
    run, text = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_pt2}[path.suffix](path)
    if not text:
        raise ConvnextError(f"{path} does not describe itself: only files that `convnext export` wrote can be opened")
    parsed = parse(text, path, exported=True)
    check_known(parsed, path, network=False)
    description = cast(ExportedDescription, parsed)
    network: ExportedNetwork = tasks.get(description["task"]).export().network(run, description, path)
    if description["graph"]["pixels"]:
        mean = description["preprocessing"]["mean"]
        assert isinstance(mean, list)  # `parse` has checked it
        description["preprocessing"] |= {"mean": [0.0] * len(mean), "std": [1 / 255] * len(mean)}
    return network, description


def _open_onnx(path: Path) -> tuple[Runner, str]:
    onnxruntime = need("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    preferred = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in preferred if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the library has its own class for each cause, all derived directly from Exception
        raise ConvnextError(f"{path} is damaged or not an ONNX file: {first_line(error)}") from error
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        given = dict(zip(names, (value.numpy() for value in inputs), strict=True))
        try:
            return [torch.from_numpy(value) for value in session.run(None, given)]
        except Exception as error:
            raise RuntimeError(first_line(error)) from error

    return run, session.get_modelmeta().custom_metadata_map.get(OWN_METADATA, "")


def _open_openvino(path: Path) -> tuple[Runner, str]:
    openvino = need("openvino", "export")
    # Without the hint a CPU with 16-bit arithmetic uses it, whatever the file's precision.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        model = openvino.Core().read_model(str(path))
        text = model.get_rt_info(OWN_METADATA).astype(str) if model.has_rt_info(OWN_METADATA) else ""
        compiled = openvino.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ConvnextError(f"{path} is damaged, not an OpenVINO model, or lacks its .bin file beside it: {first_line(error)}") from error
    count = len(compiled.outputs)

    def run(*inputs: Tensor) -> list[Tensor]:
        found = compiled([value.numpy() for value in inputs])
        return [torch.from_numpy(found[i].copy()) for i in range(count)]

    return run, text


def _open_pt2(path: Path) -> tuple[Runner, str]:
    from convnext.models.detection import fixed  # noqa: F401  # defines torch.ops.convnext.keep, which graphs of detectors hold

    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any("/aotinductor/" in name for name in archive.namelist())
        return _open_aoti(path) if compiled else _open_program(path)
    except (zipfile.BadZipFile, RuntimeError, ValueError) as error:
        raise ConvnextError(f"{path} is damaged or not a PyTorch archive: {first_line(error)}") from error


def _open_program(path: Path) -> tuple[Runner, str]:
    extra = {OWN_METADATA: ""}
    module = torch.export.load(path, extra_files=extra).module()
    return lambda *inputs: _as_list(module(*inputs)), extra[OWN_METADATA]


def _open_aoti(path: Path) -> tuple[Runner, str]:
    package = torch._inductor.aoti_load_package(str(path))
    metadata: dict[str, str] = package.get_metadata()
    return lambda *inputs: _as_list(package(*inputs)), metadata.get(OWN_METADATA, "")


def _as_list(outputs: Tensor | tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
