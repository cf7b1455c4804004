"""Segmenters as exported files."""

from typing import Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ImageSize, Preprocessing, sides
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.tasks.exported import ExportedNetwork, TaskExport, logits_error
from convnext.tasks.segment.prediction import SegmentPrediction

_SIDE = 512  # pixels, where the preprocessing has no window


class Segmenter(Protocol):
    """A network that is exported before its logits are enlarged to the image's size."""

    def logits(self, x: Tensor) -> Tensor: ...


class ExportedSegmenter(ExportedNetwork):
    """An exported segmenter, with what `models.segmentation.inference` calls of one."""

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes, H // 4, W // 4) for images (N, 3, H, W)."""
        return self.call(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes, H, W) for images (N, 3, H, W)."""
        return F.interpolate(self.logits(x), x.shape[-2:], mode="bilinear", align_corners=False)


class SegmentExport(TaskExport):
    """The graph gives logits (N, num_classes, H // 4, W // 4)."""

    network = ExportedSegmenter

    def run(self, graph: nn.Module, images: Tensor, *others: Tensor) -> Tensor:
        return cast(Segmenter, graph).logits(images)

    def size(self, how: Preprocessing, chosen: ImageSize | None) -> tuple[int, int]:
        assert isinstance(how, SegmentPreprocessing)
        return sides(chosen or how.window or _SIDE)

    def error(self, model: nn.Module, exported: ExportedNetwork, ours: Tensor, theirs: Tensor) -> float:
        return logits_error(model(ours), exported(theirs))

    def agreement(self, expected: object, found: object) -> float:
        """Return the fraction of the pixels that have the same class."""
        assert isinstance(expected, SegmentPrediction)
        assert isinstance(found, SegmentPrediction)
        return (expected.mask == found.mask).float().mean().item()
