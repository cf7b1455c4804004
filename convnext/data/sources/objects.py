"""The objects of an image: boxes, labels and masks that go together."""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from PIL.Image import Image
from torch import Tensor

from convnext.data.contents import Listed
from convnext.data.deep import DeepImage
from convnext.data.run_lengths import EncodedMasks, RunLengths, encode_all


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Objects:
    """What an image's annotation says, in torchvision's convention."""

    boxes: Tensor  # float32 (n, 4): left, top, right, bottom in pixels, the right and bottom edges outside the object
    labels: Tensor  # int64 (n,), counted from 0; there is no background
    masks: Tensor | EncodedMasks | None  # uint8 (n, H, W), 1 where the object is; None where the annotation has none
    iscrowd: Tensor  # bool (n,): a region of many objects that are not told apart
    area: Tensor  # float32 (n,), pixels in the image as annotated, whatever its later size: evaluation calls objects small by it
    image_id: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> "Objects":
        """Those where `which`, bool (n,), is true."""
        if which.all():
            return self  # masks are large: no copy without need
        masks = self.masks.take(which) if isinstance(self.masks, EncodedMasks) else None if self.masks is None else self.masks[which]
        return replace(
            self, boxes=self.boxes[which], labels=self.labels[which], masks=masks, iscrowd=self.iscrowd[which], area=self.area[which]
        )

    def run_lengths(self) -> list[RunLengths] | None:
        """The masks of an image as annotated, neither cropped nor resized, as COCO's run lengths; None where there are none."""
        if isinstance(self.masks, EncodedMasks):
            return list(self.masks.runs)
        return None if self.masks is None else encode_all(self.masks)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, masks as a tensor and left out where there are none: what detectors, `DetectionMetric` and `draw` take."""
        values = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return values | ({"masks": self.masks.to_tensor()} if isinstance(self.masks, EncodedMasks) else {})

    def to_encoded(self) -> dict[str, Any]:
        """The same with masks as a list of run lengths, a thousandth of their pixels: what evaluation takes."""
        values = {key: value for key, value in replace(self, masks=None).to_dict().items() if key != "masks"}
        return values | ({} if (masks := self.run_lengths()) is None else {"masks": masks})


class DetectionSource(Listed, Protocol):
    """Images with their objects by position: what every detection data set offers."""

    classes: list[str]
    skipped: list[str]  # files left out, to be told
    remarks: list[str]  # what else is to be told
    has_masks: bool
    category_ids: dict[str, int]  # the data's own numbers of the classes that it has, by name; none where it has no numbers
    heights: np.ndarray  # int64 (images,), known without opening one: to group images by shape
    widths: np.ndarray

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image | DeepImage: ...
    def pixels(self, index: int) -> Tensor | DeepImage: ...  # the same as a uint8 (3, H, W) tensor, where it has 8 bits
    def target(self, index: int) -> Objects: ...  # masks as a tensor of all their pixels
    def encoded_target(self, index: int) -> Objects: ...  # the same, masks not yet made: for all who need few of them at a time
    def objects_by_class(self) -> list[int] | None: ...  # how many of each there are; None where only reading all would tell
    def name(self, index: int) -> str: ...
