"""From scored boxes and small masks to detections: threshold, non-maximum suppression, pasting."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from convnext.detection.boxes import DeltaCoder, Size

SCORE = 0.05  # from which on a box is a detection
NMS_IOU = 0.5  # between detections of one class
MOST = 100  # detections in a picture
MASK = 0.5  # from which on a pixel belongs to the object
AT_ONCE = {"cpu": 1, "cuda": 2**26}  # pixels pasted together: a mask at least, and no more than some 1 GB of memory


def select(coder: DeltaCoder, boxes: Tensor, deltas: Tensor, scores: Tensor, size: Size, threshold: float = SCORE) -> dict[str, Tensor]:
    """The detections in one picture: `boxes` (k, 4), `labels` (k,) and `scores` (k,), best first.

    Args:
        coder: of the deltas.
        boxes: (n, 4).
        deltas: (n, classes, 4), a box for each class.
        scores: (n, classes + 1), background last.
        size: of the picture.
        threshold: of the scores.
    """
    which, labels = (scores[:, :-1] > threshold).nonzero(as_tuple=True)
    found = coder.decode(boxes[which], deltas[which, labels], size)
    scores = scores[which, labels]
    kept = batched_nms(found, scores, labels, NMS_IOU)[:MOST]
    return {"boxes": found[kept], "labels": labels[kept], "scores": scores[kept]}


def paste_masks(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Masks (n, 28, 28), 0 to 1, enlarged to their boxes (n, 4) in a picture of that size: (n, height, width) bool.

    Samples as mmdetection and Detectron2 do, at pixel centres with zeros around the mask; torchvision's `paste_masks_in_image`
    rounds boxes to whole pixels. A box without area has no pixel.
    """
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    # On a CPU one by one, each within as little of the picture as need be; elsewhere many at once, for fewer launches.
    together = max(1, AT_ONCE.get(masks.device.type, AT_ONCE["cuda"]) // (height * width))
    for first in range(0, len(masks), together):
        part = slice(first, first + together)
        box = boxes[part]
        left, top = (box[:, :2].amin(0).floor() - 1).clamp(min=0).int().tolist()
        right, bottom = (box[:, 2:].amax(0).ceil() + 1).int().tolist()
        rows, columns = slice(top, min(bottom, height)), slice(left, min(right, width))
        pasted[part, rows, columns] = _sample(masks[part], box, rows, columns) >= MASK
    return pasted


def _sample(masks: Tensor, boxes: Tensor, rows: slice, columns: slice) -> Tensor:
    x1, y1, x2, y2 = boxes[:, None].unbind(-1)
    y = (torch.arange(rows.start, rows.stop, device=masks.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(columns.start, columns.stop, device=masks.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    # Not finite where the box has no area: such a pixel lies outside of the mask.
    x, y = x.nan_to_num(2, 2, -2), y.nan_to_num(2, 2, -2)
    shape = (-1, y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
