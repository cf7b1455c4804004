"""Boxes (x1, y1, x2, y2) in pixels: their overlap, and the deltas that a box head predicts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

Size = tuple[int, int]  # height, width

MAX_GROWTH = math.log(1000 / 16)  # limit of a predicted change of size: exp() of a large logit would overflow


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of each of the boxes (n, 4) with each of (m, 4): (n, m). Two boxes without area have 0."""
    return box_iou(first, second).nan_to_num(0.0)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Return boxes (..., 4) clipped to an image of that size."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], -1)


@dataclass(frozen=True)
class DeltaCoder:
    """Boxes as changes (dx, dy, dw, dh) of other boxes (Girshick et al., R-CNN, 2014, appendix C), divided by `stds`.

    The published means are all 0.
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Return the deltas (n, 4) that turn each of `anchors` (n, 4) into the box of `boxes` (n, 4) at the same index.

        Both must have an area.
        """
        centres, sizes = _centres(anchors)
        target_centres, target_sizes = _centres(boxes)
        deltas = torch.cat([(target_centres - centres) / sizes, (target_sizes / sizes).log()], -1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, anchors: Tensor, deltas: Tensor, size: Size | None = None) -> Tensor:
        """Return the boxes (..., 4) that deltas (..., 4) make of `anchors` (..., 4), clipped to an image of `size` if it is given."""
        centres, sizes = _centres(anchors)
        shift, growth = torch.split(deltas * deltas.new_tensor(self.stds), 2, -1)
        centres = centres + sizes * shift
        half = sizes * growth.clamp(-MAX_GROWTH, MAX_GROWTH).exp() * 0.5
        boxes = torch.cat([centres - half, centres + half], -1)
        return boxes if size is None else clip(boxes, size)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.split(boxes, 2, -1)
    return (low + high) * 0.5, high - low
