"""From scored boxes and small masks to detections: threshold, non-maximum suppression, pasting."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from convnext.data.run_lengths import RunLengths, from_columns
from convnext.models.detection.boxes import DeltaCoder, Size

SCORE = 0.05  # detections have a higher score
NMS_IOU = 0.5  # between detections of one class
MAX_DETECTIONS = 100  # in an image
MASK = 0.5  # min value of a pixel that belongs to the object
_SIDE = 28  # pixels of the mask head's output
_SMALL = 2**14  # pixels of a window that is sampled as a whole
_UNSURE = 1e-4  # distance from MASK within which rounding decides: such pixels are computed exactly
AT_ONCE = {"cpu": 1, "cuda": 2**26}  # pixels pasted together, at least one mask: 2**26 take about 1 GB of memory

# The masks that a detector returns: "pasted", pixels of the whole image, bool (n, 1, H, W); "small", its head's output, float (n, 28, 28),
# for `encode_masks` or `paste_masks`; or "none".
Masks = Literal["pasted", "small", "none"]


@dataclass(frozen=True)
class Selection:
    """Which of the boxes above the threshold are detections."""

    most: int = MAX_DETECTIONS  # in an image, those of the highest score
    nms: float = NMS_IOU  # a box is dropped if its IoU with one of a higher score and the same class is above this
    class_agnostic: bool = False  # the same of any class
    labels: tuple[int, ...] | None = None  # only boxes of these classes are considered; None for all


AS_PUBLISHED = Selection()


def select(
    coder: DeltaCoder,
    boxes: Tensor,
    deltas: Tensor,
    scores: Tensor,
    size: Size,
    threshold: float = SCORE,
    selection: Selection = AS_PUBLISHED,
) -> dict[str, Tensor]:
    """Return the detections in one image: `boxes` (k, 4), `labels` (k,) and `scores` (k,), best first.

    Args:
        coder: decodes the deltas.
        boxes: (n, 4).
        deltas: (n, classes, 4), a box for each class.
        scores: (n, classes + 1), background last.
        size: of the image.
        threshold: detections have a higher score.
        selection: says which of those remain.
    """
    is_considered = scores[:, :-1] > threshold
    if selection.labels is not None:
        wanted = torch.zeros_like(is_considered[0])
        wanted[list(selection.labels)] = True
        is_considered &= wanted
    which, labels = is_considered.nonzero(as_tuple=True)
    found = coder.decode(boxes[which], deltas[which, labels], size)
    scores = scores[which, labels]
    groups = torch.zeros_like(labels) if selection.class_agnostic else labels
    kept = batched_nms(found, scores, groups, selection.nms)[: selection.most]
    return {"boxes": found[kept], "labels": labels[kept], "scores": scores[kept]}


def paste_masks(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Return masks (n, 28, 28), 0 to 1, enlarged to their boxes (n, 4) in an image of that size: (n, height, width) bool.

    It samples as mmdetection and Detectron2 do, at pixel centres with zeros around the mask; torchvision's `paste_masks_in_image`
    rounds boxes to whole pixels. A box without area has no pixel.
    """
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    # On a CPU one by one, each within the smallest window of the image. On a GPU many at once, for fewer launches.
    together = max(1, AT_ONCE.get(masks.device.type, AT_ONCE["cuda"]) // (height * width))
    for first in range(0, len(masks), together):
        part = slice(first, first + together)
        box = boxes[part]
        rows, columns = _window_of(box, size)
        pasted[part, rows, columns] = _sample(masks[part], box, rows, columns) >= MASK
    return pasted


def encode_masks(masks: Tensor, boxes: Tensor, size: Size, check: Callable[[], object] = lambda: None) -> list[RunLengths]:
    """Return the masks of `paste_masks`, pixel by pixel the same, as COCO's run lengths. It needs the memory of one box at a time.

    It computes on the CPU, whatever the masks' device. `check` is called before each mask; it may raise, to end the work.
    """
    masks, boxes = masks.detach().float().cpu(), boxes.detach().float().cpu()
    encoded = []
    for mask, box in zip(masks, boxes, strict=True):
        check()
        rows, columns = _window_of(box[None], size)
        encoded.append(from_columns(_inside(mask, box, rows, columns), rows.start, columns.start, size))
    return encoded


def _window_of(boxes: Tensor, size: Size) -> tuple[slice, slice]:
    """Return the rows and columns of an image of that size that hold boxes (n, 4) and a pixel around them."""
    left, top = (boxes[:, :2].amin(0).floor() - 1).clamp(min=0).int().tolist()
    right, bottom = (boxes[:, 2:].amax(0).ceil() + 1).int().tolist()
    return slice(top, max(top, min(bottom, size[0]))), slice(left, max(left, min(right, size[1])))


def _inside(mask: Tensor, box: Tensor, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
    """Return where a mask (28, 28) enlarged to its box (4,) is at least MASK: bool (columns, 1 + rows), a zero before each column."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    found = torch.zeros(width, 1 + height, dtype=torch.bool)
    inside = found[:, 1:]
    if not height or not width:
        return found.numpy()
    if height * width <= _SMALL:
        inside[:] = (_sample(mask[None], box[None], rows, columns)[0] >= MASK).t()
        return found.numpy()
    x, y = _coordinates(box[None], rows, columns)
    (left, across), (above, down) = _neighbours(x[0]), _neighbours(y[0])
    padded = F.pad(mask, (1, 1, 1, 1)).t()
    lines = torch.lerp(padded[:, above], padded[:, above + 1], down)  # (30, rows): the mask's columns at the image's rows
    firsts = torch.searchsorted(left, torch.arange(_SIDE + 2)).tolist()
    for i, (first, last) in enumerate(pairwise(firsts)):
        if first == last:
            continue
        # Between two of the mask's columns. Most rows are inside at both or outside at both, and so are the positions between them.
        one, other = lines[i], lines[i + 1]
        inside[first:last] = one >= MASK
        crossing = ((torch.minimum(one, other) < MASK + _UNSURE) & (torch.maximum(one, other) > MASK - _UNSURE)).nonzero().flatten()
        values = torch.lerp(one[crossing][None], other[crossing][None], across[first:last, None])
        inside[first:last, crossing] = values >= MASK
        column, row = ((values - MASK).abs() < _UNSURE).nonzero(as_tuple=True)
        column, row = column + first, crossing[row]
        grid = torch.stack([x[0, column], y[0, row]], -1)[None, None]
        inside[column, row] = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0, 0] >= MASK
    return found.numpy()


def _neighbours(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for coordinates -1 to 1 over a mask with zeros around it, the index of the line before each (of 30), and the fraction of
    the way to the next line, 0 to 1.
    """
    position = ((coordinates + 1) * _SIDE - 1) / 2 + 1
    position = position.clamp(0, _SIDE + 1)
    before = position.floor().clamp(max=_SIDE).long()
    return before, position - before


def _sample(masks: Tensor, boxes: Tensor, rows: slice, columns: slice) -> Tensor:
    x, y = _coordinates(boxes, rows, columns)
    shape = (-1, y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def _coordinates(boxes: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Return the coordinates of columns (n, w) and rows (n, h) of an image in each of the boxes, -1 to 1 from edge to edge."""
    x1, y1, x2, y2 = boxes[:, None].unbind(-1)
    y = (torch.arange(rows.start, rows.stop, device=boxes.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(columns.start, columns.stop, device=boxes.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    # They are not finite for a box without area: its pixels lie outside of the mask.
    return x.nan_to_num(2, 2, -2), y.nan_to_num(2, 2, -2)
