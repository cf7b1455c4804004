"""The anchors of the region proposal network, on mmdetection's grid.

torchvision's AnchorGenerator makes other anchors: it rounds their sides to whole pixels, and its stride is the padded image's size
divided by the map's. Weights trained with one of the two lose accuracy with the other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convnext.models.detection.boxes import Size

SCALE = 8.0  # an anchor's side in strides, as published
RATIOS = (0.5, 1.0, 2.0)  # height / width
STRIDES = (4, 8, 16, 32, 64)  # of the levels of a pyramid


def grid(sizes: Sequence[Size], strides: Sequence[int], device: torch.device, scale: float = SCALE) -> list[Tensor]:
    """Return the anchors (height * width * 3, 4) of each map, with a side of `scale` strides: row by row, ratios fastest."""
    roots = torch.tensor(RATIOS, device=device).sqrt()
    anchors = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        half = 0.5 * stride * scale * torch.stack([1 / roots, roots], -1)
        y, x = torch.meshgrid(*(torch.arange(n, device=device) * float(stride) for n in (height, width)), indexing="ij")
        centres = torch.stack([x, y], -1)[:, :, None]
        anchors.append(torch.cat([centres - half, centres + half], -1).view(-1, 4))
    return anchors


def usable(sizes: Sequence[Size], strides: Sequence[int], padded: Size, device: torch.device) -> Tensor:
    """Return which anchors of all maps, one map after another, lie at a position within an image of `padded` size: (anchors,) bool.

    In a batch a smaller image is padded further than alone. The anchors there are not trained.
    """
    flags = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.arange(height, device=device) * stride < padded[0], torch.arange(width, device=device) * stride < padded[1]
        flags.append((y[:, None] & x)[..., None].expand(-1, -1, len(RATIOS)).reshape(-1))
    return torch.cat(flags)


def inside(anchors: Tensor, size: Size) -> Tensor:
    """Return which anchors (n, 4) lie wholly within an image of that size: (n,) bool."""
    x1, y1, x2, y2 = anchors.unbind(-1)
    return (x1 >= 0) & (y1 >= 0) & (x2 < size[1]) & (y2 < size[0])


def best_iou(objects: np.ndarray, scale: float) -> np.ndarray:
    """Return the IoU of objects (n, 2), width and height in pixels, with the anchor of the same centre that fits best: (n,)."""
    sides, roots = scale * np.array(STRIDES, float)[:, None], np.sqrt(RATIOS)
    anchors = np.stack([sides / roots, sides * roots], -1).reshape(-1, 2)
    overlaps = np.minimum(objects[:, None], anchors).prod(-1)
    return (overlaps / (objects.prod(-1)[:, None] + anchors.prod(-1) - overlaps)).max(1)
