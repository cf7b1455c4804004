"""Detection data as data to segment: each pixel has the class of the object on it, or is background."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from convnext.data.coco import open_detection
from convnext.data.objects import DetectionSource
from convnext.errors import ConvnextError

BACKGROUND = "background"


class Semantic:
    """Pictures of a detection source with masks (H, W): 0 for background, 1 for its first class. Later objects lie on top."""

    def __init__(self, source: DetectionSource) -> None:
        self.source, self.classes = source, [BACKGROUND, *source.classes]
        self.skipped = [*source.skipped, *source.remarks]  # annotations that can't be used are left out, told
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Image.Image:
        return self.source.read(index)

    def pixels(self, index: int) -> Tensor:
        return self.source.pixels(index)

    def mask(self, index: int) -> Tensor:
        objects = self.source.target(index)
        found = torch.zeros(int(self.source.heights[index]), int(self.source.widths[index]), dtype=torch.uint8)
        for mask, label in zip(objects.masks if objects.masks is not None else (), objects.labels, strict=True):
            found[mask.bool()] = int(label) + 1
        return found

    def name(self, index: int) -> str:
        return self.source.name(index)


def open_semantic(where: str, classes: Sequence[str] | None = None) -> Semantic:
    """The pictures that `where` names in the notation of `open_detection`: `scenes:train`, `coco:ANNOTATIONS.json:FOLDER`.

    Raises ConvnextError if the annotations have no masks, or the network's classes do not begin with background.
    """
    if classes is not None and (not classes or classes[0] != BACKGROUND):
        raise ConvnextError(f"{where} gives every pixel the class of an object or {BACKGROUND!r}, and the network knows no such class")
    source = open_detection(where, None if classes is None else classes[1:])
    if not source.has_masks:
        raise ConvnextError(f"{where} has boxes but no masks: nothing to segment by")
    return Semantic(source)
