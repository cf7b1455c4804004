"""What a task says of exported files: the graph of its networks, the network that opens such a file, and how the two are compared."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NotRequired, Self, TypedDict

import torch
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ImageSize, Preprocessing
from convnext.errors import ConvnextError, NotFiniteError, UsageError, first_line
from convnext.models.network import Network

Runner = Callable[..., Sequence[Tensor]]  # a graph in its runtime: from inputs to outputs, all on the CPU


class GraphDescription(TypedDict):
    """How a graph was exported."""

    precision: str
    pixels: bool
    size: list[int] | None
    num_classes: int
    outputs: list[str]
    inputs: NotRequired[list[str]]
    defaults: NotRequired[dict[str, float]]  # of inputs that have one


class ExportedDescription(TypedDict):
    """What an exported file says of itself."""

    task: str
    model: Mapping[str, object]  # arguments of `create_model`
    classes: list[str] | None
    preprocessing: dict[str, object]
    class_ids: NotRequired[list[int | list[int]]]
    source: NotRequired[str]
    calibration: NotRequired[dict[str, object] | None]  # its lists
    labels: NotRequired[list[str] | None]  # class names for display, also where the weights do not name them
    graph: GraphDescription
    convnext: NotRequired[str]


class ExportedNetwork(Network):
    """An exported network. It computes in its own precision on the CPU, wherever its inputs are; outputs are float32 on their device.

    Args:
        runner: the graph in its runtime.
        description: of the file.
        path: of the file, for messages.
    """

    def __init__(self, runner: Runner, description: ExportedDescription, path: Path) -> None:
        super().__init__()
        self.runner, self.path, self.graph = runner, path, description["graph"]
        self.num_classes = self.graph["num_classes"]
        self.spec = description["model"]
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)  # so that `.to()` and `next(parameters()).device` work
        # torch.compile leaves it alone. Not by a decorator, which would import torch._dynamo, and that takes a second, with this module.
        self._apart: Callable[..., list[Tensor]] = torch.compiler.disable(ExportedNetwork._run)  # type: ignore[no-untyped-call]
        self.eval()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # a session of another library can't be copied, and has no state that a copy could change

    def call(self, images: Tensor, *others: Tensor) -> list[Tensor]:
        """Return the graph's outputs for prepared images (N, 3, H, W). Raises UsageError for a size that it was not exported for."""
        return self._apart(self, images, *others)

    def _run(self, images: Tensor, *others: Tensor) -> list[Tensor]:
        size, height, width = self.graph["size"], *images.shape[-2:]
        if size is not None and [height, width] != size:
            raise UsageError(f"{self.path} takes images of {size[0]} x {size[1]} pixels, not of {height} x {width}")
        x = images.detach().to("cpu", torch.float32)
        if self.graph["pixels"]:
            x = x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        try:
            outputs = self.runner(x.contiguous(), *others)
        except RuntimeError as error:
            raise ConvnextError(f"{self.path} could not be run on images of {height} x {width} pixels: {first_line(error)}") from error
        if not all(bool(output.isfinite().all()) for output in outputs):
            raise NotFiniteError
        return [output.to(images.device) for output in outputs]

    def forward_features(self, x: Tensor) -> Tensor:
        """Raises UsageError: an exported network has no such output."""
        raise UsageError(f"{self.path} gives {' and '.join(self.graph['outputs'])} only: take features from the checkpoint it was made of")

    features = forward_features


class TaskExport(ABC):
    """How the networks of a task are exported and opened again."""

    network: ClassVar[type[ExportedNetwork]]  # opens such a file
    inputs: ClassVar[tuple[str, ...]] = ("images",)  # of the graph
    defaults: ClassVar[Mapping[str, float]] = MappingProxyType({})  # of inputs that have one
    stride: ClassVar[int] = 1  # the graph's images have sides that are multiples of this
    can_fix_size: ClassVar[bool] = True  # whether a graph for images of one size is of use
    refused: ClassVar[Mapping[str, str]] = MappingProxyType({})  # precisions that are not offered, with the reason

    def graph(self, model: nn.Module, how: Preprocessing, paste_masks: bool = False) -> nn.Module:
        """Return the module that is traced: by default the network itself.

        Args:
            model: the network.
            how: its preprocessing.
            paste_masks: whether a detector also gives masks in pixels of its images. Raises UsageError for a network without such masks.
        """
        if paste_masks:
            raise UsageError("--paste-masks is for detectors with a mask head")
        return model

    @abstractmethod
    def run(self, graph: nn.Module, images: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the graph's outputs. `images` are normalised (N, 3, H, W), `others` the further `inputs`."""

    def masked(self, images: Tensor, *others: Tensor) -> Tensor:
        """Return images (N, 3, H, W) that the graph has normalised, with 0 wherever the network expects it."""
        return images

    def example(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Return the further inputs to trace the graph with, beside so many images of that size: numbers, or a row for each image."""
        return ()

    def outputs(self, graph: nn.Module) -> list[str]:
        """Return the names of the outputs of what `graph` returned."""
        return ["logits"]

    @abstractmethod
    def size(self, how: Preprocessing, chosen: ImageSize | None) -> tuple[int, int]:
        """Return the height and width that the graph is traced with; `chosen` is the caller's choice."""

    def resized(self, how: Preprocessing, size: ImageSize) -> Preprocessing:
        """Return the preprocessing of a network that is exported for images of that size."""
        return how

    def known_names(self, count: int) -> list[str] | None:
        """Return the names of so many classes for weights that do not name them; None where unknown."""
        return None

    @abstractmethod
    def error(self, model: nn.Module, exported: ExportedNetwork, ours: Tensor, theirs: Tensor) -> float:
        """Return the largest relative error of an exported network.

        Args:
            model: what it was exported from.
            exported: the opened file.
            ours: images (N, 3, H, W) as the model takes them.
            theirs: the same images as the file takes them.

        Raises ConvnextError if the outputs can't be compared as numbers.
        """

    def agreement(self, expected: object, found: object) -> float:
        """Return how far two predictions of the task for an image agree, 0 to 1, as a user sees them.

        Raises UsageError for a task without such a measure.
        """
        raise UsageError("--precision int8 can't be verified for this task: export with another precision")


def logits_error(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference of two tensors of logits, relative to the largest that is expected; inf for other shapes.

    Raises ConvnextError if what is expected is not finite.
    """
    if not expected.isfinite().all():
        raise ConvnextError("the network's own outputs are not finite")
    if expected.shape != found.shape:
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
