"""Detection data as data to segment: each pixel has the class of the object on it, or is background."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.run_lengths import decode
from convnext.data.sources.coco import open_detection
from convnext.data.sources.objects import DetectionSource
from convnext.errors import ConvnextError

BACKGROUND = "background"


class Semantic:
    """Images of a detection source with masks (H, W): 0 for background, 1 for its first class. Later objects lie on top."""

    def __init__(self, source: DetectionSource) -> None:
        self.source, self.classes = source, [BACKGROUND, *source.classes]
        self.skipped, self.remarks = source.skipped, source.remarks
        self.problems: list[str] = []
        self.class_ids: list[int | tuple[int, int, int]] | None = None  # there are no mask files

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Image.Image | DeepImage:
        return self.source.read(index)

    def pixels(self, index: int) -> Tensor | DeepImage:
        return self.source.pixels(index)

    def mask(self, index: int) -> Tensor:
        objects = self.source.encoded_target(index)
        found = torch.zeros(int(self.source.heights[index]), int(self.source.widths[index]), dtype=torch.uint8)
        for runs, label in zip(objects.run_lengths() or (), objects.labels, strict=True):
            found[decode(runs).bool()] = int(label) + 1
        return found

    def name(self, index: int) -> str:
        return self.source.name(index)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def label_bytes(self, index: int) -> bytes:
        return self.source.label_bytes(index)


def open_semantic(where: str, classes: Sequence[str] | None = None) -> Semantic:
    """The images that `where` names in the notation of `open_detection`: `scenes:train`, `coco:ANNOTATIONS.json:FOLDER`.

    Raises ConvnextError if the annotations have no masks, or the network's classes do not begin with background.
    """
    if classes is not None and (not classes or classes[0] != BACKGROUND):
        raise ConvnextError(f"{where} gives every pixel the class of an object or {BACKGROUND!r}, and the network knows no such class")
    source = open_detection(where, None if classes is None else classes[1:])
    if not source.has_masks:
        raise ConvnextError(f"{where} has boxes but no masks: nothing to segment by")
    return Semantic(source)
