"""The computation of `Detector.predict` for one image in fixed shapes, for exported graphs.

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
    """A detector's inference for one image that is already padded.

    Args:
        detector: in evaluation mode.
        most: number of detections that it gives.
    """

    def __init__(self, detector: Detector, most: int = postprocess.MAX_DETECTIONS) -> None:
        super().__init__()
        self.detector, self.most = detector, most

    def forward(self, image: Tensor, size: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Return the `most` best detections, the best first.

        Args:
            image: (1, 3, H, W), zeros right of and below the image; H and W are multiples of 32.
            size: (2,) int64, height and width of the image within it.
            threshold: () float32; detections have a higher score (0.05 in `Detector.predict`).

        Returns: boxes (most, 4) in pixels of `image`, labels (most,) int64, scores (most,), 0 in padding rows, and, of a
        detector with a mask head, masks (most, 28, 28), 0 to 1, each to be stretched over its box.
        """
        net = self.detector
        border = size.flip(0).repeat(2).float()
        levels = net.neck(net.normed_maps(image))
        boxes, real = self._propose(levels, border)
        levels = levels[:-1]
        boxes, labels, scores = self._detect(levels, boxes, real, border, threshold)
        if not net.roi_head.has_masks:
            return boxes, labels, scores
        pooled = self._pool(levels, boxes, MASK_REGION)
        masks = torch.stack([head(pooled, labels).sigmoid() for head in net.roi_head.mask_heads]).mean(0)
        return boxes, labels, scores, masks

    def _propose(self, levels: Sequence[Tensor], border: Tensor) -> tuple[Tensor, Tensor]:
        """Return proposals (n, 4), the likeliest first, and which of the rows are not padding (n,)."""
        head = self.detector.rpn_head
        limits, count = head.test_limits, head.test_limits.per_level
        found, tops = [], []
        for anchor, logit, delta in zip(head.grid(levels), *head(levels), strict=True):
            # Padded, so that a level with too few anchors has as many rows as the others. Padding boxes have no area.
            top, chosen = F.pad(logit[0], (0, count), value=float("-inf")).topk(count)
            padding = (0, 0, 0, count)
            found.append(head.coder.decode(F.pad(anchor, padding)[chosen], F.pad(delta[0], padding)[chosen]))
            tops.append(top)
        boxes, logits = _clip(torch.stack(found), border), torch.stack(tops)
        # By rank, because logits have no lower bound for a threshold.
        rank = torch.arange(count, 0, -1, device=logits.device) / count
        ranked = torch.where(_has_area(boxes), rank, 0.0)
        kept = keep(boxes, ranked, rpn.NMS_IOU, ranked.new_zeros(()))
        best, index = logits.masked_fill(~kept, float("-inf")).flatten().topk(limits.kept)
        return boxes.flatten(0, 1)[index], best > float("-inf")

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
                likeliest = deltas[torch.arange(len(boxes), device=boxes.device), logits[:, :-1].argmax(1)]
                boxes = _clip(stage.coder.decode(boxes, likeliest), border)
        scores = torch.stack(stage_logits).mean(0).softmax(1)[:, :-1] * real[:, None]
        by_class = _clip(head.stages[-1].coder.decode(boxes[:, None], deltas), border).transpose(0, 1).contiguous()
        kept = keep(by_class, scores.t().contiguous(), postprocess.NMS_IOU, threshold)
        best, index = torch.where(kept, scores.t(), 0.0).flatten().topk(min(self.most, kept.numel()))
        return by_class.flatten(0, 1)[index], index // len(boxes), best

    def _pool(self, levels: list[Tensor], boxes: Tensor, side: int) -> Tensor:
        """Return the levels at the boxes (n, 4) as `roi_align.pool` does: (n, C, side, side). Every box is pooled from all levels; only
        its own level gives more than zeros.
        """
        strides = self.detector.roi_head.strides
        which, wide = level_of(boxes, strides), _has_area(boxes)
        total = boxes.new_zeros(())
        for number, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            # A box of another level is moved far outside of the map, where all is 0, and made small, which costs little.
            elsewhere = stride * torch.tensor([-100.0, -100.0, -93.0, -93.0], device=boxes.device)
            here = torch.where(((which == number) & wide)[:, None], boxes, elsewhere)
            rois = F.pad(here, (1, 0))
            total = total + roi_align(level, rois, side, 1 / stride, sampling_ratio=0, aligned=True)
        return total


def _clip(boxes: Tensor, border: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), border)


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)
