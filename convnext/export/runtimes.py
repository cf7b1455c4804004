"""Exported files as networks: what `convnext export` wrote, behind the signatures of the torch networks it was made of.

ONNX and OpenVINO files are data, and opened like weights. A `.pt2` is not: an archive of torch.export may hold pickles and
expressions that are evaluated, a package of AOTInductor is native code. Such a file is opened only where `TRUST` is set.
"""

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.errors import ConvnextError, NotFiniteError, UsageError, first_line, need
from convnext.models.detection import fixed, postprocess  # fixed: the operator in archives of detectors
from convnext.models.detection.boxes import Size
from convnext.models.weights.description import parse
from convnext.models.weights.files import OWN_METADATA

ENDINGS = (".onnx", ".xml", ".pt2")
TRUST = "CONVNEXT_TRUST_PT2"  # the environment variable that allows opening .pt2 files

Run = Callable[..., Sequence[Tensor]]  # inputs to outputs, all on the CPU
Description = dict[str, Any]

assert fixed.keep


class Network(nn.Module):
    """An exported network. It computes in its own precision on the CPU, wherever its inputs are; outputs are float32 there.

    Args:
        run: the graph.
        description: what the file says of itself.
        path: of the file, for messages.
    """

    def __init__(self, run: Run, description: Description, path: Path) -> None:
        super().__init__()
        self.run, self.path, self.graph = run, path, description["graph"]
        self.num_classes: int = self.graph["num_classes"]
        self.spec: dict[str, Any] = description["model"]
        # Who asks a network's parameters where it is, or moves it, is served by this one.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        self.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Network":
        return self  # a session of another library can't be copied, and holds nothing that a copy could change

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def call(self, images: Tensor, *others: Tensor) -> list[Tensor]:
        """The graph's outputs for prepared images (N, 3, H, W). Raises UsageError for a size that it was not exported for."""
        size, height, width = self.graph["size"], *images.shape[-2:]
        if size is not None and [height, width] != size:
            raise UsageError(f"{self.path} takes images of {size[0]} x {size[1]} pixels, not of {height} x {width}")
        x = images.detach().to("cpu", torch.float32)
        if self.graph["pixels"]:
            x = x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        try:
            outputs = self.run(x.contiguous(), *others)
        except RuntimeError as error:
            raise ConvnextError(f"{self.path} could not be run on images of {height} x {width} pixels: {first_line(error)}") from error
        if not all(bool(output.isfinite().all()) for output in outputs):
            raise NotFiniteError
        return [output.to(images.device) for output in outputs]

    def forward_features(self, x: Tensor) -> Tensor:
        """Raises UsageError: an exported network has no such output."""
        raise UsageError(f"{self.path} gives {' and '.join(self.graph['outputs'])} only: take features from the checkpoint it was made of")

    features = forward_features


class Classifier(Network):
    """Gives logits (N, num_classes)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)[0]


class Segmenter(Network):
    """Has what `segmentation.inference` and `UperNet.forward` need of a segmenter."""

    def logits(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes, H // 4, W // 4)."""
        return self.call(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes, H, W)."""
        return F.interpolate(self.logits(x), x.shape[-2:], mode="bilinear", align_corners=False)


class DetectorNetwork(Network):
    """Has `Detector.predict`; images go through one by one."""

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return self.predict(images)

    def predict(
        self,
        images: Sequence[Tensor],
        output_sizes: Sequence[Size] | None = None,
        threshold: float = postprocess.SCORE,
        masks: postprocess.Masks = "pasted",
    ) -> list[dict[str, Tensor]]:
        """See `Detector.predict`."""
        sizes = output_sizes or [(image.shape[1], image.shape[2]) for image in images]
        return [self._predict(image, size, threshold, masks) for image, size in zip(images, sizes, strict=True)]

    def _predict(self, image: Tensor, size: Size, threshold: float, kind: postprocess.Masks) -> dict[str, Tensor]:
        height, width = image.shape[1:]
        padded = F.pad(image, (0, -width % 32, 0, -height % 32))[None]
        boxes, labels, scores, *masks = self.call(padded, torch.tensor([height, width]), torch.tensor(threshold))
        found = scores > 0
        boxes = boxes[found] * boxes.new_tensor((size[1] / width, size[0] / height) * 2)
        result = {"boxes": boxes, "labels": labels[found], "scores": scores[found]}
        if masks and kind != "none":
            small = masks[0][found]
            result["masks"] = postprocess.paste_masks(small, boxes, size)[:, None] if kind == "pasted" else small
        return result


NETWORKS = {"classify": Classifier, "segment": Segmenter, "detect": DetectorNetwork}


def open_exported(path: Path, trusted: bool = False) -> tuple[Any, Description]:
    """The network of an exported file, and what the file says of itself: `task`, `model`, `classes`, `preprocessing`, `graph`.

    Args:
        path: a file of one of the `ENDINGS`.
        trusted: open a `.pt2` although `TRUST` is not set.

    Where normalisation is within the graph, the description's `preprocessing` is one whose result is pixel values, 0 to 255.

    Raises ConvnextError if the file is missing, damaged or not ours, UsageError for a missing library or missing trust.
    """
    if not path.is_file():
        raise ConvnextError(f"no exported network {path}")
    if path.suffix == ".pt2" and not trusted and os.environ.get(TRUST) != "1":
        raise UsageError(
            f"{path} may run any code when it is opened; if you made it, or trust who did, set {TRUST}=1 (ONNX needs no trust)"
        )
    run, text = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_pt2}[path.suffix](path)
    if not text:
        raise ConvnextError(f"{path} does not describe itself: only files that `convnext export` wrote can be opened")
    description: Description = parse(text, path, exported=True)
    network = NETWORKS[description["task"]](run, description, path)
    if description["graph"]["pixels"]:
        channels = len(description["preprocessing"]["mean"])
        description["preprocessing"] |= {"mean": [0.0] * channels, "std": [1 / 255] * channels}
    return network, description


def _open_onnx(path: Path) -> tuple[Run, str]:
    onnxruntime = need("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the library has a class of its own for each cause, all of them straight from Exception
        raise ConvnextError(f"{path} is damaged, or no ONNX file: {first_line(error)}") from error
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        given = dict(zip(names, (value.numpy() for value in inputs), strict=True))
        try:
            return [torch.from_numpy(value) for value in session.run(None, given)]
        except Exception as error:
            raise RuntimeError(first_line(error)) from error

    return run, session.get_modelmeta().custom_metadata_map.get(OWN_METADATA, "")


def _open_openvino(path: Path) -> tuple[Run, str]:
    openvino = need("openvino", "export")
    # Without the hint a CPU that has 16-bit arithmetic uses it, whatever the file's precision.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        model = openvino.Core().read_model(str(path))
        text = model.get_rt_info(OWN_METADATA).astype(str) if model.has_rt_info(OWN_METADATA) else ""
        compiled = openvino.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ConvnextError(f"{path} is damaged, no OpenVINO model, or its .bin file is not beside it: {first_line(error)}") from error
    count = len(compiled.outputs)

    def run(*inputs: Tensor) -> list[Tensor]:
        found = compiled([value.numpy() for value in inputs])
        return [torch.from_numpy(found[i].copy()) for i in range(count)]

    return run, text


def _open_pt2(path: Path) -> tuple[Run, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any("/aotinductor/" in name for name in archive.namelist())
        return _open_aoti(path) if compiled else _open_program(path)
    except (zipfile.BadZipFile, RuntimeError, ValueError) as error:
        raise ConvnextError(f"{path} is damaged, or no archive of PyTorch: {first_line(error)}") from error


def _open_program(path: Path) -> tuple[Run, str]:
    extra = {OWN_METADATA: ""}
    module = torch.export.load(path, extra_files=extra).module()
    return lambda *inputs: _as_list(module(*inputs)), extra[OWN_METADATA]


def _open_aoti(path: Path) -> tuple[Run, str]:
    package = torch._inductor.aoti_load_package(str(path))
    metadata: dict[str, str] = package.get_metadata()
    return lambda *inputs: _as_list(package(*inputs)), metadata.get(OWN_METADATA, "")


def _as_list(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
