"""A user's own augmentation as a step of a training transform: behind the others, before normalisation.

An image goes in as uint8 (C, H, W), or as float32 from 0 to 255 if it is deep. An image of the same size must come back, as a tensor, a
NumPy array (H, W, C) or a PIL image. Every answer is checked, so that a mistake shows at the first sample. What a function draws from the
global generators of Python, NumPy and PyTorch is seeded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from convnext.data.annotations.mask_files import IGNORED
from convnext.data.annotations.objects import ImageObjects
from convnext.data.images import to_pixels
from convnext.data.transforms.visible import areas, clipped, dense
from convnext.errors import ConvnextError, UsageError, first_line


@dataclass(frozen=True)
class OwnStep:
    """What the steps of all tasks share. They raise ConvnextError if the function fails, UsageError if it returns another thing."""

    name: str  # for messages
    function: Callable[..., object]

    def _called(self, *arguments: object) -> object:
        try:
            return self.function(*arguments)
        except ConvnextError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise ConvnextError(f"the transform {self.name} failed: {type(error).__name__}: {first_line(error)}") from error

    def _pair(self, found: object, second: str) -> tuple[object, object]:
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise UsageError(f"the transform {self.name} must return an image and {second}, not a {type(found).__name__}")
        return found[0], found[1]

    def _image(self, found: object, pixels: Tensor) -> Tensor:
        if isinstance(found, Image | np.ndarray):
            found = torch.from_numpy(np.array(found)).movedim(-1, 0)
        if not isinstance(found, Tensor) or found.shape != pixels.shape or found.dtype not in (torch.uint8, torch.float32):
            what = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UsageError(f"the transform {self.name} must return an image of shape {tuple(pixels.shape)}, uint8 or float32, not {what}")
        return found

    def _numbers(self, what: str, found: object, shape: tuple[int | None, ...]) -> Tensor:
        """Return numbers that came back as a tensor of a shape, where None is any length. Raises UsageError for others."""
        try:
            if isinstance(found, list | tuple):  # of arrays, for instance
                found = np.stack([np.asarray(one) for one in found]) if found else np.zeros([size or 0 for size in shape])
            numbers = torch.as_tensor(np.ascontiguousarray(found) if isinstance(found, np.ndarray) else found)  # a mirror image, too
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"the transform {self.name} returned {what} that are no numbers: {first_line(error)}") from error
        if numbers.ndim != len(shape) or any(size not in (None, got) for size, got in zip(shape, numbers.shape, strict=True)):
            wanted = ", ".join("n" if size is None else str(size) for size in shape)
            raise UsageError(f"the transform {self.name} must return {what} of shape ({wanted}), not {tuple(numbers.shape)}")
        return numbers


@dataclass(frozen=True)
class Extra(OwnStep):
    """The step of a classifier: a function of an image."""

    def __call__(self, image: Image | Tensor) -> Tensor:
        pixels = to_pixels(image)
        return self._image(self._called(pixels), pixels)


@dataclass(frozen=True)
class ExtraObjects(OwnStep):
    """The step of a detector: a function of an image and a dict of its objects, which returns both.

    The dict holds `boxes`, float32 (n, 4): left, top, right, bottom in pixels; `labels`, int64 (n,); and, where the data have them,
    `masks`, uint8 (n, H, W). There may be other objects in what comes back. Boxes are clipped to the image, and objects whose box is
    then less than a pixel wide or high are dropped.
    """

    classes: int  # labels are below it

    def __call__(self, pixels: Tensor, objects: ImageObjects) -> tuple[Tensor, ImageObjects]:
        """Return the image (C, H, W) and its objects as the function changes them."""
        objects = dense(objects)
        given = {"boxes": objects.boxes, "labels": objects.labels} | ({} if objects.masks is None else {"masks": objects.masks})
        image, found = self._pair(self._called(pixels, dict(given)), "the dict of its objects")
        height, width = pixels.shape[1:]
        if not isinstance(found, dict) or (missing := [key for key in given if key not in found]):
            what = f"one without {missing[0]!r}" if isinstance(found, dict) else f"a {type(found).__name__}"
            raise UsageError(f"the transform {self.name} must return the objects as a dict with {', '.join(given)}, not {what}")
        boxes = self._boxes(found["boxes"])
        count = len(boxes)
        labels = self._numbers("labels", found["labels"], (count,)).long()
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise UsageError(
                f"the transform {self.name} returned the labels {sorted(set(labels.tolist()))}: they are 0 to {self.classes - 1}"
            )
        masks = None if objects.masks is None else (self._numbers("masks", found["masks"], (count, height, width)) != 0).to(torch.uint8)
        boxes = clipped(boxes, height, width)
        crowd = torch.zeros(count, dtype=torch.bool)
        changed = replace(objects, boxes=boxes, labels=labels, masks=masks, iscrowd=crowd, area=areas(boxes))
        return self._image(image, pixels), changed.take((boxes[:, 2:] - boxes[:, :2] >= 1).all(1))

    def _boxes(self, found: object) -> Tensor:
        boxes = self._numbers("boxes", found, (None, 4)).float()
        what = "left, top, right and bottom in pixels"
        if not boxes.isfinite().all() or (boxes[:, 2:] < boxes[:, :2]).any():
            bad = next(box for box in boxes.tolist() if not (np.isfinite(box).all() and box[0] <= box[2] and box[1] <= box[3]))
            raise UsageError(f"the transform {self.name} returned the box {bad}: boxes are {what}")
        if len(boxes) and boxes.max() <= 1:
            raise UsageError(f"the transform {self.name} returned boxes from 0 to 1, the first {boxes[0].tolist()}: boxes are {what}")
        return boxes


@dataclass(frozen=True)
class ExtraMask(OwnStep):
    """The step of a segmenter: a function of an image and its mask, uint8 (H, W), which returns both in the same size."""

    classes: int  # values of the mask are below it, or 255 for what is ignored

    def __call__(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image (C, H, W) and the mask (H, W) as the function changes them."""
        image, found = self._pair(self._called(pixels, mask), "its mask")
        changed = self._numbers("a mask", found, tuple(mask.shape))
        values = set(np.unique(changed.numpy()).tolist())
        if wrong := sorted(values - {*range(self.classes), IGNORED}):
            raise UsageError(
                f"the transform {self.name} returned a mask with the value {wrong[0]}: classes are 0 to {self.classes - 1}, and {IGNORED} "
                "is ignored"
            )
        return self._image(image, pixels), changed.to(torch.uint8)
