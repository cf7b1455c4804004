"""The region proposal network (Ren et al., Faster R-CNN, 2015): boxes that may hold an object of any class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from convnext.models.detection import anchors
from convnext.models.detection.boxes import DeltaCoder, Size
from convnext.models.detection.layers import init_normal
from convnext.models.detection.targets import Matcher, Sampler, Truth

NMS_IOU = 0.7  # between proposals of one level


@dataclass(frozen=True)
class ProposalLimits:
    """How many proposals an image has."""

    per_level: int  # before non-maximum suppression
    kept: int  # of all levels together, after it


@dataclass(frozen=True)
class Proposals:
    """Boxes of one image that may hold an object, the likeliest first."""

    boxes: Tensor  # (n, 4)
    objectness: Tensor  # (n,), 0 to 1


class RPNHead(nn.Module):
    """One 3 x 3 convolution, and from each position the objectness and the deltas of three anchors.

    Args:
        width: channels of the pyramid.
        strides: of its five levels.
        smooth_l1_beta: beta of the box loss; 0 makes it L1.
        whole_anchors_only: do not train anchors that cross the image's border.
        train_limits: limits of the proposals for training the region heads.
        test_limits: limits of the proposals for detections.
        anchor_scale: an anchor's side in strides.
    """

    matcher = Matcher(positive=0.7, negative=0.3, low_quality=0.3)
    coder = DeltaCoder()

    def __init__(
        self,
        width: int,
        strides: Sequence[int],
        *,
        smooth_l1_beta: float,
        whole_anchors_only: bool,
        train_limits: ProposalLimits,
        test_limits: ProposalLimits,
        anchor_scale: float = anchors.SCALE,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.smooth_l1_beta, self.whole_anchors_only = smooth_l1_beta, whole_anchors_only
        self.train_limits, self.test_limits, self.anchor_scale = train_limits, test_limits, anchor_scale
        self.sampler = Sampler(256, 0.5)
        per_position = len(anchors.RATIOS)
        self.rpn_conv = nn.Conv2d(width, width, 3, padding=1)
        self.rpn_cls = nn.Conv2d(width, per_position, 1)
        self.rpn_reg = nn.Conv2d(width, 4 * per_position, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            init_normal(layer, 0.01 * 256 / width)  # 0.01 at the published width; see `UperNet`'s classifier

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (N, H * W * 3) and deltas (N, H * W * 3, 4) of each level (N, width, H, W), in the order of its anchors."""
        logits, deltas = [], []
        for level in levels:
            x = F.relu(self.rpn_conv(level), inplace=True)
            logits.append(self.rpn_cls(x).permute(0, 2, 3, 1).flatten(1).float())
            # Not `len(x)`, which would fix the number of images of an exported graph.
            deltas.append(self.rpn_reg(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4).float())
        return logits, deltas

    def grid(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors (n, 4) of each level."""
        return anchors.grid(_sizes(levels), self.strides, levels[0].device, self.anchor_scale)

    def losses(
        self, levels: Sequence[Tensor], outputs: tuple[list[Tensor], list[Tensor]], sizes: Sequence[Size], targets: Sequence[Truth]
    ) -> dict[str, Tensor]:
        """Return the losses (scalars) of `forward`'s outputs for the levels, for images of those sizes before padding."""
        logits, deltas = (torch.cat(output, 1) for output in outputs)
        every = torch.cat(self.grid(levels))
        classification, regression, count = logits.new_zeros(()), logits.new_zeros(()), 0
        for i, (size, truth) in enumerate(zip(sizes, targets, strict=True)):
            considered = self._considered(levels, every, size)
            matched = self.matcher(every[considered], truth.boxes)
            positive, negative = self.sampler(matched)
            count += max(len(positive), 1) + max(len(negative), 1)
            target = self.coder.encode(every[considered[positive]], truth.boxes[matched[positive]])
            positive, negative = considered[positive], considered[negative]
            chosen = torch.cat([logits[i, positive], logits[i, negative]])
            labels = torch.cat([torch.ones_like(target[:, 0]), torch.zeros_like(logits[i, negative])])
            classification = classification + F.binary_cross_entropy_with_logits(chosen, labels, reduction="sum")
            found = deltas[i, positive]
            regression = regression + F.smooth_l1_loss(found, target, beta=self.smooth_l1_beta, reduction="sum")
        return {"loss_rpn_cls": classification / count, "loss_rpn_bbox": regression / count}

    def _considered(self, levels: Sequence[Tensor], every: Tensor, size: Size) -> Tensor:
        """Return the indices of the anchors that may be trained in an image of that size."""
        multiple = self.strides[3]
        padded = (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)
        flags = anchors.usable(_sizes(levels), self.strides, padded, every.device)
        if self.whole_anchors_only:
            flags &= anchors.inside(every, size)
        return flags.nonzero().flatten()

    @torch.no_grad()
    def propose(
        self, levels: Sequence[Tensor], outputs: tuple[list[Tensor], list[Tensor]], sizes: Sequence[Size], limits: ProposalLimits
    ) -> list[Proposals]:
        """Return the proposals of each image from `forward`'s outputs, clipped to its size before padding."""
        grid = self.grid(levels)
        return [self._propose(grid, [[level[i] for level in output] for output in outputs], size, limits) for i, size in enumerate(sizes)]

    def _propose(self, grid: list[Tensor], outputs: list[list[Tensor]], size: Size, limits: ProposalLimits) -> Proposals:
        boxes, logits, levels = [], [], []
        for number, (anchor, logit, delta) in enumerate(zip(grid, *outputs, strict=True)):
            top, chosen = logit.topk(min(limits.per_level, len(logit)))
            boxes.append(self.coder.decode(anchor[chosen], delta[chosen], size))
            logits.append(top)
            levels.append(torch.full_like(chosen, number))
        box, logit, level = torch.cat(boxes), torch.cat(logits), torch.cat(levels)
        has_area = (box[:, 2:] > box[:, :2]).all(1)
        box, logit, level = box[has_area], logit[has_area], level[has_area]
        kept = batched_nms(box, logit, level, NMS_IOU)[: limits.kept]
        return Proposals(box[kept], logit[kept].sigmoid())


def _sizes(levels: Sequence[Tensor]) -> list[Size]:
    return [(level.shape[2], level.shape[3]) for level in levels]
