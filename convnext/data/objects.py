"""The objects of a picture: boxes, labels and masks that go together."""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Objects:
    """What a picture's annotation says, in torchvision's convention."""

    boxes: Tensor  # float32 (n, 4): left, top, right, bottom in pixels, the right and bottom edges outside the object
    labels: Tensor  # int64 (n,), counted from 0; there is no background
    masks: Tensor | None  # uint8 (n, H, W), 1 where the object is; None where the annotation has none
    iscrowd: Tensor  # bool (n,): a region of many objects that are not told apart
    area: Tensor  # float32 (n,), pixels in the picture as annotated, whatever its later size: evaluation calls objects small by it
    image_id: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> "Objects":
        """Those where `which`, bool (n,), is true."""
        if which.all():
            return self  # masks are large: no copy without need
        masks = None if self.masks is None else self.masks[which]
        return replace(
            self, boxes=self.boxes[which], labels=self.labels[which], masks=masks, iscrowd=self.iscrowd[which], area=self.area[which]
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, without masks where there are none: what detectors, `DetectionMetric` and `draw` take."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


class DetectionSource(Protocol):
    """Pictures with their objects by position: what every detection data set offers."""

    classes: list[str]
    skipped: list[str]  # files left out, to be told
    remarks: list[str]  # what else is to be told
    has_masks: bool
    heights: np.ndarray  # int64 (pictures,), known without opening one: to group pictures by shape
    widths: np.ndarray

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image: ...
    def pixels(self, index: int) -> Tensor: ...  # the same as a uint8 (3, H, W) tensor
    def target(self, index: int) -> Objects: ...
    def name(self, index: int) -> str: ...
