"""Objects that an augmentation hides or cuts off in part: which of them remain, and the boxes of what remains.

One rule holds for rotation, copy-paste and mosaic: an object remains if at least a tenth of it is still visible, and if its box is still
at least a pixel wide and high.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from convnext.data.annotations.objects import ImageObjects
from convnext.data.run_lengths import EncodedMasks

VISIBLE = 0.1  # smallest fraction of an object that must remain


def remaining(objects: ImageObjects, shares: Tensor) -> ImageObjects:
    """Return the objects that remain, their areas multiplied by what is visible of them.

    Args:
        objects: with the boxes and masks of what is visible.
        shares: float32 (n,), the visible fraction of each object.
    """
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    return replace(objects, area=objects.area * shares.clamp(max=1)).take((shares >= VISIBLE) & (sides >= 1).all(1))


def dense(objects: ImageObjects) -> ImageObjects:
    """Return the objects with the pixels of their masks in place of run lengths."""
    return replace(objects, masks=objects.masks.to_tensor()) if isinstance(objects.masks, EncodedMasks) else objects


def boxes_of(masks: Tensor) -> Tensor:
    """Return the smallest boxes around the pixels of masks (n, H, W), float32 (n, 4); 0, 0, 0, 0 for a mask without pixels."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            box[:] = torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    return boxes


def one_by_one(masks: Tensor | EncodedMasks) -> Iterator[Tensor]:
    """Yield the pixels (H, W) of one mask after the other: of run lengths only one mask is in memory as pixels."""
    if isinstance(masks, Tensor):
        yield from masks
        return
    for which in torch.eye(len(masks), dtype=torch.bool):
        yield masks.take(which).to_tensor()[0]


def change_each(masks: Tensor | EncodedMasks, size: tuple[int, int], change: Callable[[Tensor, Tensor], object]) -> tuple[Tensor, Tensor]:
    """Return masks (n, H, W) of that size, uint8, and the fraction of its pixels that each has kept, float32 (n,); 0 if it had none.

    Args:
        masks: before.
        size: height and width after.
        change: writes a mask as it becomes, given first, of a mask as it was; it is given with zeros.
    """
    found = torch.zeros(len(masks), *size, dtype=torch.uint8)
    shares = torch.zeros(len(masks))
    for number, mask in enumerate(one_by_one(masks)):
        change(found[number], mask)
        shares[number] = _count(found[number]) / max(1, _count(mask))
    return found, shares


def _count(mask: Tensor) -> int:
    return int(np.count_nonzero(mask.numpy()))  # PyTorch's sum copies to int64 first


def areas(boxes: Tensor) -> Tensor:
    """Return the areas of boxes (n, 4), float32 (n,); 0 where a box is empty."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the parts of boxes (n, 4) within an image."""
    return boxes.clamp(min=torch.zeros(4), max=torch.tensor([width, height] * 2))


def joined(parts: Sequence[ImageObjects]) -> ImageObjects:
    """Return the objects of several parts of one image, masks as tensors of one size; other facts are those of the first."""
    masks = [part.masks for part in parts if isinstance(part.masks, Tensor)]
    return replace(
        parts[0],
        boxes=torch.cat([part.boxes for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        masks=torch.cat(masks) if len(masks) == len(parts) else None,
        iscrowd=torch.cat([part.iscrowd for part in parts]),
        area=torch.cat([part.area for part in parts]),
    )
