"""What is exported of a network: a module of tensors in and tensors out, and torch's graph of it."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from convnext.errors import ConvnextError
from convnext.models.detection.fixed import FixedDetector
from convnext.models.load import Loaded

DTYPES = {"float32": torch.float32, "fp16": torch.float16}
_TRACED = 128  # pixels: no map of any network or detector has one position then


@dataclass(frozen=True)
class Form:
    """How a network is to be exported."""

    precision: str = "float32"  # or fp16: weights and what is between layers; inputs and outputs are float32 in any case
    pixels: bool = False  # whether it takes pixels and normalises them itself
    size: tuple[int, int] = (224, 224)  # (height, width) of the images it is traced with
    dynamic: bool = True  # whether it takes other sizes, too


class Graph(nn.Module):
    """A network as it is exported: what is called, for its task, with `Form.pixels` uint8 (N, H, W, 3), else float32 (N, 3, H, W).

    Returns the outputs of `outputs_of`: logits (N, classes), a segmenter's (N, classes, H // 4, W // 4), and for a detector what
    `FixedDetector` does, which takes also its two other inputs.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, loaded: Loaded, form: Form) -> None:
        super().__init__()
        model = copy.deepcopy(loaded.model).to("cpu", DTYPES[form.precision]).eval().requires_grad_(False)
        _replace_adaptive_pooling(model)
        self.task, self.pixels, self.dtype = loaded.task, form.pixels, DTYPES[form.precision]
        self.network: Any = FixedDetector(model) if loaded.task == "detect" else model
        mean, std = (torch.tensor(values)[:, None, None] for values in (loaded.preprocessing.mean, loaded.preprocessing.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: Tensor, size: Tensor | None = None, threshold: Tensor | None = None) -> Any:
        x = images
        if self.pixels:
            x = x.permute(0, 3, 1, 2).float() * self.scale + self.shift
        if size is not None:
            return self.network(self._blank_outside(x, size) if self.pixels else x, size, threshold)
        x = x.to(self.dtype)
        return (self.network.logits(x) if self.task == "segment" else self.network(x)).float()

    def _blank_outside(self, x: Tensor, size: Tensor) -> Tensor:
        # Detectors learn with padding of 0 after normalisation, which no pixel value stands for.
        rows, columns = (torch.arange(side) < length for side, length in zip(x.shape[2:], size.unbind(), strict=True))
        return x * rows[:, None] * columns


def outputs_of(loaded: Loaded) -> list[str]:
    """What a network's graph returns, by name."""
    if loaded.task != "detect":
        return ["logits"]
    return ["boxes", "labels", "scores", *(["masks"] if loaded.model.roi_head.has_masks else [])]


def trace(graph: Graph, form: Form) -> ExportedProgram:
    """The graph as torch.export has it. Raises what torch does where `form.dynamic` is more than the network can."""
    # PyTorch takes a map of one position for a case of its own, and would make the graph for that one only.
    height, width = (max(side, _TRACED) for side in form.size) if form.dynamic else form.size
    detects = graph.task == "detect"
    count = 1 if detects else 2
    images = torch.zeros((count, height, width, 3), dtype=torch.uint8) if graph.pixels else torch.zeros(count, 3, height, width)
    inputs: tuple[Tensor, ...] = (images,)
    side = 1 if graph.pixels else 2
    free: dict[int, Any] = {} if detects else {0: Dim("batch", min=1)}
    if form.dynamic and detects:
        free |= {side: 32 * Dim("rows"), side + 1: 32 * Dim("columns")}
    elif form.dynamic:
        free |= {side: Dim.DYNAMIC, side + 1: Dim.DYNAMIC}  # torch finds the least size
    shapes: tuple[Any, ...] = (free,)
    if detects:
        inputs, shapes = (images, torch.tensor([height, width]), torch.tensor(0.05)), (free, {}, {})
    # A side or batch of 1 is no case of its own anywhere here, and would else be left out of what the graph can take.
    oblivious: Any = torch.fx.experimental._config
    with oblivious.patch(backed_size_oblivious=True), torch.no_grad():
        program = torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=False)
    # PyTorch chooses memory layouts by the batch, and notes what it chose for as a condition; no result depends on it.
    program._guards_code = [guard for guard in program._guards_code if "size()[0]" not in guard]
    return program


def refuse_overflow(graph: Graph, images: Tensor) -> None:
    """Run the graph and raise ConvnextError that names the first layer whose output is not finite, if there is one."""
    found: list[str] = []

    def hook_of(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not found and not output.isfinite().all():
                found.append(f"{name or 'the network'} gives {'NaN' if output.isnan().any() else 'inf'}")

        return look

    hooks = [module.register_forward_hook(hook_of(name.removeprefix("network."))) for name, module in graph.named_modules()]
    with torch.no_grad():
        graph(images)
    for hook in hooks:
        hook.remove()
    if found:
        raise ConvnextError(
            f"{found[0]} in fp16, which ends at 65504: export with --precision float32 (in PyTorch bf16 has the same range)"
        )


class _PoolByProducts(nn.Module):
    """Adaptive average pooling as a product along each axis: few formats have it for sizes that are not known beforehand."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        down, across = (_pooling(side, cells).to(x.dtype) for side, cells in zip(x.shape[-2:], self.size, strict=True))
        return F.linear(F.linear(x, across).transpose(2, 3), down).transpose(2, 3)


def _pooling(length: int, cells: int) -> Tensor:
    """Weights (cells, length): a cell's mean is over the positions from floor(i n / cells) up to ceil((i + 1) n / cells)."""
    cell, position = torch.arange(cells)[:, None], torch.arange(length)
    start, end = cell * length // cells, -(-(cell + 1) * length // cells)
    counts = ((position >= start) & (position < end)).float()
    return counts / counts.sum(1, keepdim=True)


def _replace_adaptive_pooling(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size: Any = child.output_size
                setattr(module, name, _PoolByProducts(size if isinstance(size, tuple) else (size, size)))
