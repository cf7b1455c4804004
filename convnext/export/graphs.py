"""From a network to a graph: a module of tensors in and tensors out, and what torch.export makes of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from convnext import tasks
from convnext.errors import ConvnextError
from convnext.models.backbones.convnext import Block
from convnext.models.load import Loaded

# int8 is made from a graph in float32.
DTYPES = {"float32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
_TRACED = 128  # pixels: at this size no map of any network or detector has a single position


@dataclass(frozen=True)
class Form:
    """The options of an exported graph."""

    precision: str = "float32"  # of `DTYPES`: of weights and between layers; inputs and outputs are float32 in any case
    pixels: bool = False  # whether it takes pixels and normalises them itself
    size: tuple[int, int] = (224, 224)  # (height, width) of the images it is traced with
    dynamic: bool = True  # whether it takes other sizes too
    paste_masks: bool = False  # whether a detector also gives masks in pixels of its images


class ExportGraph(nn.Module):
    """A network as it is exported. With `Form.pixels` it takes uint8 (N, H, W, C), else float32 (N, C, H, W).

    Further inputs and all outputs are those of the task's `export()`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, loaded: Loaded, form: Form) -> None:
        super().__init__()
        model = copy.deepcopy(loaded.model).to("cpu", DTYPES[form.precision]).eval().requires_grad_(False)
        _replace_adaptive_pooling(model)
        if DTYPES[form.precision] == torch.float32:
            _fold_layer_scale(model)
        self.rules, self.channels = tasks.get(loaded.task).export(), loaded.preprocessing.channels
        self.pixels, self.dtype = form.pixels, DTYPES[form.precision]
        self.network = self.rules.graph(model, loaded.preprocessing, form.paste_masks)
        mean, std = (torch.tensor(values)[:, None, None] for values in (loaded.preprocessing.mean, loaded.preprocessing.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = images
        if self.pixels:
            x = self.rules.masked(x.permute(0, 3, 1, 2).float() * self.scale + self.shift, *others)
        outputs = self.rules.run(self.network, x.to(self.dtype), *others)
        return outputs.float() if isinstance(outputs, Tensor) else outputs


def trace(graph: ExportGraph, form: Form) -> ExportedProgram:
    """Return the graph that torch.export makes. Raises torch's own error if `form.dynamic` asks for more than the network can do."""
    # PyTorch treats a map of one position as a special case, and would make the graph for that one only.
    height, width = (max(side, _TRACED) for side in form.size) if form.dynamic else form.size
    rules = graph.rules
    count, channels = 2, graph.channels
    images = (
        torch.zeros((count, height, width, channels), dtype=torch.uint8) if graph.pixels else torch.zeros(count, channels, height, width)
    )
    others = rules.example(count, height, width)
    rows, batch = 1 if graph.pixels else 2, Dim("batch", min=1)
    free: dict[int, object] = {0: batch}
    if form.dynamic and rules.stride == 1:
        free |= {rows: Dim.DYNAMIC, rows + 1: Dim.DYNAMIC}  # torch finds the smallest size
    elif form.dynamic:
        free |= {rows: rules.stride * Dim("rows"), rows + 1: rules.stride * Dim("columns")}
    shapes: dict[str, object] = {"images": free} | (
        {"others": tuple({0: batch} if other.ndim else {} for other in others)} if others else {}
    )
    # A side or batch of 1 is no special case in any of these networks; without this the graph could not take it.
    oblivious: Any = torch.fx.experimental._config  # its `patch` is not typed
    with oblivious.patch(backed_size_oblivious=True), torch.no_grad():
        program = torch.export.export(graph, (images, *others), dynamic_shapes=shapes, strict=False)
    # PyTorch chooses memory layouts by the batch, and notes its choice as a condition; no result depends on it.
    program._guards_code = [guard for guard in program._guards_code if "size()[0]" not in guard]
    return program


def refuse_overflow(graph: ExportGraph, images: Tensor) -> None:
    """Run the graph. Raises ConvnextError that names the first layer whose output is not finite, if there is one."""
    found: list[str] = []

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not found and not output.isfinite().all():
                found.append(f"{name or 'the network'} gives {'NaN' if output.isnan().any() else 'inf'}")

        return look

    hooks = [module.register_forward_hook(hook_of(name.removeprefix("network."))) for name, module in graph.named_modules()]
    with torch.no_grad():
        graph(images)
    for hook in hooks:
        hook.remove()
    if found:
        raise ConvnextError(f"{found[0]} in fp16, which ends at 65504: export with --precision float32, or with bf16 to torch or aoti")


class _PoolByProducts(nn.Module):
    """Adaptive average pooling as a product along each axis: few formats have it for sizes that are unknown in advance."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        down, across = (_pooling(side, cells).to(x.dtype) for side, cells in zip(x.shape[-2:], self.size, strict=True))
        return F.linear(F.linear(x, across).transpose(2, 3), down).transpose(2, 3)


def _pooling(length: int, cells: int) -> Tensor:
    """Return weights (cells, length): each cell is the mean of the positions from floor(i n / cells) up to ceil((i + 1) n / cells)."""
    cell, position = torch.arange(cells)[:, None], torch.arange(length)
    start, end = cell * length // cells, -(-(cell + 1) * length // cells)
    counts = ((position >= start) & (position < end)).float()
    return counts / counts.sum(1, keepdim=True)


def _replace_adaptive_pooling(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                rows, columns = child.output_size if isinstance(child.output_size, tuple) else (child.output_size, child.output_size)
                assert rows is not None  # None keeps a side, which no network here does
                assert columns is not None
                setattr(module, name, _PoolByProducts((rows, columns)))


def _fold_layer_scale(model: nn.Module) -> None:
    """Multiply layer scales into the weights before them. In fp16 the product may be too small to be a number."""
    for block in model.modules():
        if isinstance(block, Block) and block.gamma is not None:
            block.pwconv2.weight.mul_(block.gamma[:, None])
            block.pwconv2.bias.mul_(block.gamma)
            block.gamma = None
