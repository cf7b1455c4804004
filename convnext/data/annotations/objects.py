"""The objects of an image: boxes, labels and masks that belong together."""

from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

from torch import Tensor

from convnext.data.run_lengths import EncodedMasks, RunLengths, encode_all


class ObjectsDict(TypedDict):
    """The fields of `ImageObjects` by name: the form that detectors, `DetectionMetric` and `draw` take."""

    boxes: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]  # absent if the annotation has no masks
    iscrowd: Tensor
    area: Tensor
    image_id: int


class EncodedObjectsDict(TypedDict):
    """The fields of `ImageObjects` by name, masks as run lengths: the form that evaluation takes."""

    boxes: Tensor
    labels: Tensor
    masks: NotRequired[list[RunLengths]]  # absent if the annotation has no masks
    iscrowd: Tensor
    area: Tensor
    image_id: int


@dataclass(frozen=True, eq=False)  # `==` of tensors gives no single answer
class ImageObjects:
    """The annotated objects of one image, in torchvision's convention."""

    boxes: Tensor  # float32 (n, 4): left, top, right, bottom in pixels; the right and bottom edges lie outside the object
    labels: Tensor  # int64 (n,), counted from 0; background is no label
    masks: Tensor | EncodedMasks | None  # uint8 (n, H, W), 1 on the object; None if the annotation has no masks
    iscrowd: Tensor  # bool (n,): a region of many objects that are not annotated one by one
    area: Tensor  # float32 (n,), pixels in the image as annotated, whatever its later size: evaluation groups objects by it
    image_id: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> "ImageObjects":
        """Return the objects where `which`, bool (n,), is true."""
        if which.all():
            return self  # masks are large: copy them only if necessary
        masks = self.masks
        if masks is not None:
            masks = masks.take(which) if isinstance(masks, EncodedMasks) else masks[which]
        return replace(
            self, boxes=self.boxes[which], labels=self.labels[which], masks=masks, iscrowd=self.iscrowd[which], area=self.area[which]
        )

    def run_lengths(self) -> list[RunLengths] | None:
        """Return the masks of an image as annotated, neither cropped nor resized, as COCO's run lengths; None if it has no masks."""
        if isinstance(self.masks, EncodedMasks):
            return list(self.masks.runs)
        return None if self.masks is None else encode_all(self.masks)

    def to_dict(self) -> ObjectsDict:
        """Return the fields by name, masks as a tensor."""
        masks = self.masks.to_tensor() if isinstance(self.masks, EncodedMasks) else self.masks
        before: ObjectsDict = {
            "boxes": self.boxes, "labels": self.labels, "iscrowd": self.iscrowd, "area": self.area, "image_id": self.image_id
        }  # fmt: skip
        return before if masks is None else {"boxes": self.boxes, "labels": self.labels, "masks": masks} | before

    def to_encoded(self) -> EncodedObjectsDict:
        """Return the fields by name, masks as run lengths, which take a thousandth of the memory of their pixels."""
        found: EncodedObjectsDict = {
            "boxes": self.boxes, "labels": self.labels, "iscrowd": self.iscrowd, "area": self.area, "image_id": self.image_id
        }  # fmt: skip
        if (masks := self.run_lengths()) is not None:
            found["masks"] = masks
        return found
