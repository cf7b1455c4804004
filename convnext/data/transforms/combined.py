"""Training images made of several: objects of one image pasted onto another (copy-paste), and parts of four images side by side (mosaic).

Sources: Ghiasi et al., *Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation* (2021); Bochkovskiy et al.,
*YOLOv4: Optimal Speed and Accuracy of Object Detection* (2020). The functions draw from NumPy's global generator: call them under `seeded`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.data.annotations.objects import ImageObjects
from convnext.data.transforms.visible import areas, boxes_of, change_each, clipped, joined, remaining

_CENTRE = (0.2, 0.8)  # of a mosaic, as a fraction of its sides: darknet's `mosaic_bound`

Window = tuple[int, int, int, int]  # top, left, height, width


def pasted(pixels: Tensor, objects: ImageObjects, other: Tensor, found: ImageObjects) -> tuple[Tensor, ImageObjects]:
    """Return an image (C, H, W) with some objects of another on it; the masks of what they cover are cut.

    The objects, at least one, are drawn evenly, and keep their places to each other. The other image lies at a random place: within this
    one, or around it where it is larger. As in the paper's simplest form, nothing is blended. Objects remain by the rule of `visible`;
    those pasted that do not are not pasted.

    Args:
        pixels, objects: the image and its objects, with masks.
        other, found: another image (C, h, w) and its objects, with masks.
    """
    if not len(found):
        return pixels, objects
    chosen = torch.zeros(len(found), dtype=torch.bool)
    chosen[np.random.permutation(len(found))[: np.random.randint(1, len(found) + 1)]] = True
    top, left = (_offset(there - here) for there, here in zip(pixels.shape[1:], other.shape[1:], strict=True))
    size = int(pixels.shape[1]), int(pixels.shape[2])
    above = _moved(found.take(chosen), top, left, size)
    assert isinstance(above.masks, Tensor)
    covered = above.masks.any(0).bool()  # of uint8 it gives uint8
    placed = F.pad(other, _padding(other, top, left, size))
    return torch.where(covered, placed, pixels), joined([_cut(objects, ~covered), above])


def _offset(room: int) -> int:
    """Return a random position within some pixels of room, which are negative where what is placed is larger than its ground."""
    return int(np.random.randint(min(room, 0), max(room, 0) + 1))


def _padding(placed: Tensor, top: int, left: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the columns and rows around (…, h, w) placed on a ground of that size; negative ones are cut off."""
    return left, size[1] - left - placed.shape[-1], top, size[0] - top - placed.shape[-2]


def _moved(objects: ImageObjects, top: int, left: int, size: tuple[int, int]) -> ImageObjects:
    """Return what remains of objects whose image lies at that place on a ground of that size, masks as pixels."""
    around = objects.boxes + torch.tensor([left, top] * 2)
    boxes = clipped(around, *size)
    if objects.masks is None:
        return remaining(replace(objects, boxes=boxes), areas(boxes) / areas(around))
    masks, shares = change_each(objects.masks, size, lambda found, mask: found.copy_(F.pad(mask, _padding(mask, top, left, size))))
    return _refitted(replace(objects, boxes=boxes, masks=masks), masks, shares)


def _cut(objects: ImageObjects, kept: Tensor) -> ImageObjects:
    """Return what remains of objects with masks where only some pixels, bool (H, W), are kept; masks as pixels."""
    assert objects.masks is not None
    masks, shares = change_each(objects.masks, (kept.shape[0], kept.shape[1]), lambda found, mask: found.copy_(mask * kept))
    return _refitted(replace(objects, masks=masks), masks, shares)


def _refitted(objects: ImageObjects, masks: Tensor, shares: Tensor) -> ImageObjects:
    """Return what remains of objects of whose masks some fractions were kept. Those that are whole keep their boxes as annotated."""
    boxes = objects.boxes.clone()
    for number in (shares < 1).nonzero().flatten().tolist():
        boxes[number] = boxes_of(masks[number : number + 1])[0]
    return remaining(replace(objects, boxes=boxes), shares)


def draw_quarters(height: int, width: int) -> list[Window]:
    """Return the four windows of a mosaic of that size, which meet in a random point."""
    row, column = (min(max(int(side * np.random.uniform(*_CENTRE)), 1), side - 1) for side in (height, width))
    return [
        (0, 0, row, column), (0, column, row, width - column), (row, 0, height - row, column), (row, column, height - row, width - column)
    ]  # fmt: skip


def draw_window(height: int, width: int, room: Window) -> Window:
    """Return the window of an image of that size that a quarter shows: at a random place, and no larger than the image."""
    rows, columns = min(height, room[2]), min(width, room[3])
    return int(np.random.randint(height - rows + 1)), int(np.random.randint(width - columns + 1)), rows, columns


def seen_through(objects: ImageObjects, window: Window) -> ImageObjects:
    """Return what remains of the objects of an image within a window of it, in the window's pixels."""
    top, left, height, width = window
    near = areas(clipped(objects.boxes - torch.tensor([left, top] * 2), height, width)) > 0
    return _moved(objects.take(near), -top, -left, (height, width))


def assembled(
    parts: Sequence[tuple[Tensor, ImageObjects]], quarters: Sequence[Window], size: tuple[int, int], fill: Sequence[float]
) -> tuple[Tensor, ImageObjects]:
    """Return the mosaic of four images (C, h, w), each in the upper left of its quarter, and their objects.

    Args:
        parts: the images, none larger than its quarter, and their objects.
        quarters: from `draw_quarters`.
        size: height and width of the mosaic.
        fill: the value of each channel where an image is smaller than its quarter.
    """
    found = joined([_shifted(objects, quarter) for (_, objects), quarter in zip(parts, quarters, strict=True)])
    if all(objects.masks is not None for _, objects in parts):
        masks, first = torch.zeros(len(found), *size, dtype=torch.uint8), 0
        for (_, objects), (top, left, _, _) in zip(parts, quarters, strict=True):
            assert isinstance(objects.masks, Tensor)
            count, height, width = objects.masks.shape
            masks[first : first + count, top : top + height, left : left + width] = objects.masks
            first += count
        found = replace(found, masks=masks)
    return on_canvas([pixels for pixels, _ in parts], quarters, size, fill), found


def _shifted(objects: ImageObjects, quarter: Window) -> ImageObjects:
    """Return the objects of a part of a mosaic without their masks, boxes in the mosaic's pixels."""
    return replace(objects, boxes=objects.boxes + torch.tensor([quarter[1], quarter[0]] * 2), masks=None)


def on_canvas(parts: Sequence[Tensor], quarters: Sequence[Window], size: tuple[int, int], fill: Sequence[float]) -> Tensor:
    """Return an image of that size with each part (C, h, w) in the upper left of its quarter; see `assembled`."""
    kind = torch.uint8 if all(pixels.dtype == torch.uint8 for pixels in parts) else torch.float32
    colour = torch.tensor(fill).round() if kind == torch.uint8 else torch.tensor(fill)
    canvas = colour.clamp(0, 255).to(kind)[:, None, None].repeat(1, *size)
    for pixels, (top, left, _, _) in zip(parts, quarters, strict=True):
        canvas[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return canvas
