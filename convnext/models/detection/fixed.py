"""The computation of `Detector.predict` in fixed shapes, for exported graphs.

Boxes are selected by a mask over the whole list, and a list that is too short is padded. A padding row has score 0. No format has an
operator for non-maximum suppression of several lists of boxes. It is an operator of our own here, `convnext::keep`, and exporters write it
with the operators of their format.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from convnext.models.detection import postprocess, rpn
from convnext.models.detection.box_heads import REGION as BOX_REGION
from convnext.models.detection.detector import Detector
from convnext.models.detection.mask_head import REGION as MASK_REGION
from convnext.models.detection.roi_align import level_of


@torch.library.custom_op("convnext::keep", mutates_args=())
def keep(boxes: Tensor, scores: Tensor, iou: float, threshold: Tensor) -> Tensor:
    """Return which boxes of each list non-maximum suppression keeps: (lists, n) bool.

    Args:
        boxes: (lists, n, 4).
        scores: (lists, n); a box is considered only if its score is above `threshold`.
        iou: a box is dropped if its IoU with a box of higher score in the same list is above this.
        threshold: (), of the scores.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for box, score, row in zip(boxes, scores, kept, strict=True):
        considered = (score > threshold).nonzero().flatten()
        row[considered[nms(box[considered], score[considered], iou)]] = True
    return kept


@keep.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


class FixedDetector(nn.Module):
    """A detector's inference for images that are already padded to one size.

    Args:
        detector: in evaluation mode.
        most: number of detections in an image.
        pasted: whether masks are also enlarged to the images' pixels.
    """

    def __init__(self, detector: Detector, most: int = postprocess.MAX_DETECTIONS, pasted: bool = False) -> None:
        super().__init__()
        self.detector, self.most, self.pasted = detector, most, pasted

    def forward(self, images: Tensor, sizes: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Return the `most` best detections in each image, the best first.

        Args:
            images: (N, 3, H, W), zeros right of and below each image; H and W are multiples of 32.
            sizes: (N, 2) int64, height and width of each image within.
            threshold: () float32; detections have a higher score (0.05 in `Detector.predict`).

        Returns: boxes (N, most, 4) in pixels of `images`, labels (N, most) int64, scores (N, most), 0 in padding rows, and, of a
        detector with a mask head, masks (N, most, 28, 28), 0 to 1, each to be stretched over its box. With `pasted` those are followed by
        the same masks in the images' pixels, (N, most, H, W) bool.
        """
        net = self.detector
        border = sizes.flip(1).repeat(1, 2).float()[:, None]
        levels = net.neck(net.normed_maps(images))
        boxes, real = self._propose(levels, border)
        levels = levels[:-1]
        boxes, labels, scores = self._detect(levels, boxes, real, border, threshold)
        if not net.roi_head.has_masks:
            return boxes, labels, scores
        pooled = self._pool(levels, boxes, MASK_REGION)
        masks = torch.stack([head(pooled, labels.flatten()).sigmoid() for head in net.roi_head.mask_heads]).mean(0)
        masks = masks.reshape(labels.shape + masks.shape[1:])
        found = boxes, labels, scores, masks
        return (*found, _pasted(masks, boxes, images.shape[2], images.shape[3])) if self.pasted else found

    def _propose(self, levels: Sequence[Tensor], border: Tensor) -> tuple[Tensor, Tensor]:
        """Return proposals (N, n, 4), the likeliest first, and which of them are not padding (N, n)."""
        head = self.detector.rpn_head
        limits, count = head.test_limits, head.test_limits.per_level
        found, tops = [], []
        for anchor, logit, delta in zip(head.grid(levels), *head(levels), strict=True):
            # Padded, so that a level with too few anchors has as many rows as the others. Padding boxes have no area.
            top, chosen = F.pad(logit, (0, count), value=float("-inf")).topk(count)
            padding = (0, 0, 0, count)
            found.append(head.coder.decode(F.pad(anchor, padding)[chosen], _rows(F.pad(delta, padding), chosen)))
            tops.append(top)
        boxes, logits = _clip(torch.stack(found, 1), border[:, None]), torch.stack(tops, 1)
        # By rank, because logits have no lower bound for a threshold.
        rank = torch.arange(count, 0, -1, device=logits.device) / count
        ranked = torch.where(_has_area(boxes), rank, 0.0)
        kept = keep(boxes.flatten(0, 1), ranked.flatten(0, 1), rpn.NMS_IOU, ranked.new_zeros(())).reshape(logits.shape)
        best, index = logits.masked_fill(~kept, float("-inf")).flatten(1).topk(limits.kept)
        return _rows(boxes.flatten(1, 2), index), best > float("-inf")

    def _detect(
        self, levels: list[Tensor], boxes: Tensor, real: Tensor, border: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, labels and scores of the best."""
        head = self.detector.roi_head
        stage_logits = []
        for number, (stage, box_head) in enumerate(zip(head.stages, head.box_heads, strict=True)):
            logits, deltas = box_head(self._pool(levels, boxes, BOX_REGION))
            stage_logits.append(logits)
            if number + 1 < len(head.stages):
                likeliest = deltas[torch.arange(logits.shape[0], device=boxes.device), logits[:, :-1].argmax(1)]
                boxes = _clip(stage.coder.decode(boxes, likeliest.reshape(boxes.shape)), border)
        count, classes = boxes.shape[1], head.num_classes
        scores = torch.stack(stage_logits).mean(0).softmax(1)[:, :-1].reshape(-1, count, classes) * real[..., None]
        scores = scores.transpose(1, 2).contiguous()
        decoded = head.stages[-1].coder.decode(boxes[:, :, None], deltas.reshape(-1, count, classes, 4))
        by_class = _clip(decoded, border[:, None]).transpose(1, 2).contiguous()
        kept = keep(by_class.flatten(0, 1), scores.flatten(0, 1), postprocess.NMS_IOU, threshold).reshape(scores.shape)
        best, index = torch.where(kept, scores, 0.0).flatten(1).topk(min(self.most, count * classes))
        return _rows(by_class.flatten(1, 2), index), index // count, best

    def _pool(self, levels: list[Tensor], boxes: Tensor, side: int) -> Tensor:
        """Return the levels at the boxes (N, n, 4) as `roi_align.pool` does: (N * n, C, side, side).

        Every box is pooled from all levels; only its own level gives more than zeros.
        """
        strides = self.detector.roi_head.strides
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(boxes.shape[:2]).flatten()
        boxes = boxes.flatten(0, 1)
        which, wide = level_of(boxes, strides), _has_area(boxes)
        total = boxes.new_zeros(())
        for number, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            # A box of another level is moved far outside of the map, where all is 0, and made small, which costs little.
            elsewhere = stride * torch.tensor([-100.0, -100.0, -93.0, -93.0], device=boxes.device)
            here = torch.where(((which == number) & wide)[:, None], boxes, elsewhere)
            rois = torch.cat([images[:, None].to(here.dtype), here], 1)
            total = total + roi_align(level, rois, side, 1 / stride, sampling_ratio=0, aligned=True)
        return total


def _pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Return what `postprocess.paste_masks` returns for masks (N, n, 28, 28) and boxes (N, n, 4): (N, n, height, width) bool.

    Bilinear interpolation is a product along each axis. For each mask the products have `height` x `width` numbers.
    """
    left, top, right, bottom = boxes.unbind(-1)
    down = _shares(top, bottom, height, masks.shape[-2])
    across = _shares(left, right, width, masks.shape[-1])
    return down @ masks @ across.transpose(-1, -2) >= postprocess.MASK


def _shares(low: Tensor, high: Tensor, count: int, cells: int) -> Tensor:
    """Return the share that each of a mask's `cells` lines has in each of `count` pixels: (..., count, cells), sums from 0 to 1."""
    pixels = torch.arange(count, device=low.device) + 0.5
    position = (pixels - low[..., None]) / (high - low)[..., None].clamp(min=1e-6) * cells - 0.5
    return (1 - (position[..., None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows of values (N, n, 4) at indices (N, m): (N, m, 4)."""
    return values.gather(1, index[..., None].expand(-1, -1, 4))


def _clip(boxes: Tensor, border: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), border)


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)
