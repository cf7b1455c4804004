"""Rotation of an image with its objects, about its centre and within its own size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from convnext.data.annotations.objects import ImageObjects
from convnext.data.transforms.geometry import rotated
from convnext.data.transforms.visible import areas, boxes_of, change_each, clipped, remaining


def turned(pixels: Tensor, objects: ImageObjects, angle: float, fill: Sequence[float]) -> tuple[Tensor, ImageObjects]:
    """Return an image (C, H, W) and its objects, turned; see `rotated`. Objects remain by the rule of `visible`.

    Masks take the nearest pixel, and boxes are those of the turned masks. Without masks a box becomes the smallest box around its
    turned corners, which is larger than the object; what is visible of it is the part of that box within the image.
    """
    if not angle:
        return pixels, objects
    height, width = pixels.shape[1:]
    if objects.masks is not None:
        masks, shares = change_each(objects.masks, (height, width), _turning(angle, height, width))
        found = replace(objects, boxes=boxes_of(masks), masks=masks)
    else:
        around = _turned_boxes(objects.boxes, angle, height, width)
        found = replace(objects, boxes=clipped(around, height, width))
        shares = areas(found.boxes) / areas(around)
    return rotated(pixels, angle, fill), remaining(found, shares)


def _turning(angle: float, height: int, width: int) -> Callable[[Tensor, Tensor], None]:
    """Return the function that writes a mask (H, W) turned as `rotated` turns an image, at a cost in proportion to its box."""
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    rows, columns = rotated(grid, angle, [-1.0], "nearest").long()  # of the pixel that goes to each place; -1 in the corners

    def turn(found: Tensor, mask: Tensor) -> None:
        around = clipped(_turned_boxes(boxes_of(mask[None]), angle, height, width), height, width)[0].tolist()
        part = slice(math.floor(around[1]), math.ceil(around[3])), slice(math.floor(around[0]), math.ceil(around[2]))
        found[part] = mask[rows[part], columns[part]] * (rows[part] >= 0)

    return turn


def _turned_boxes(boxes: Tensor, angle: float, height: int, width: int) -> Tensor:
    """Return the smallest boxes around the corners of boxes (n, 4) turned by an angle in degrees, anticlockwise."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = boxes[:, [0, 2, 2, 0]] - width / 2, boxes[:, [1, 1, 3, 3]] - height / 2
    columns, rows = x * cos + y * sin + width / 2, y * cos - x * sin + height / 2
    return torch.stack([columns.amin(1), rows.amin(1), columns.amax(1), rows.amax(1)], 1)
