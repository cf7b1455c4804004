import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from models.detection.detectors import scene, small

from convnext.models.detection.boxes import DeltaCoder, iou
from convnext.models.detection.rpn import ProposalLimits
from convnext.models.detection.targets import Sampler, Truth

SIZES = [(64, 96), (100, 40)]


def head_and_levels(kind):
    """With outputs of order 1, for a batch padded to 128 x 96."""
    head = randomise(small(kind).rpn_head)
    head.sampler = Sampler(10**7, 0.5)
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 32, 128 // s, 96 // s, generator=generator) for s in (4, 8, 16, 32)]
    return head, [*levels, levels[-1][:, :, ::2, ::2]]


def objects(size, empty=False):
    target = scene(*size, *(([], []) if empty else ([(4, 6, 36, 40), (2, 30, 30, 62)], [0, 1])))[1]
    return Truth(target["boxes"], target["labels"], target["masks"])


def by_hand(head, levels, size, target, image, beta, whole_only):
    """Sums of both losses and the number that they are divided by, from the rule in words."""
    logits = torch.cat([head.rpn_cls(F.relu(head.rpn_conv(x)))[image].permute(1, 2, 0).flatten() for x in levels])
    deltas = torch.cat([head.rpn_reg(F.relu(head.rpn_conv(x)))[image].permute(1, 2, 0).reshape(-1, 4) for x in levels])
    anchors = torch.cat(head.grid(levels))
    padded = [-(-side // 32) * 32 for side in size]
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    counts = (centre[:, 0] < padded[1]) & (centre[:, 1] < padded[0])
    if whole_only:
        counts &= (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] < size[1]) & (anchors[:, 3] < size[0])
    overlaps = iou(anchors, target.boxes)
    overlaps[~counts] = -1
    best = overlaps.amax(1) if len(target.boxes) else torch.where(counts, 0.0, -1.0)
    positive = best >= 0.7
    for o in range(len(target.boxes)):
        if overlaps[:, o].max() >= 0.3:
            positive |= overlaps[:, o] == overlaps[:, o].max()
    negative = counts & (best < 0.3) & ~positive
    classification = F.softplus(-logits[positive]).sum() + F.softplus(logits[negative]).sum()
    regression = 0.0
    if positive.any():
        mine = overlaps[positive].argmax(1)  # the objects of this test are too far apart to share an anchor
        error = (deltas[positive] - DeltaCoder().encode(anchors[positive], target.boxes[mine])).abs()
        regression = torch.where(error < beta, 0.5 * error**2 / max(beta, 1e-9), error - 0.5 * beta).sum()
    return classification, regression, max(int(positive.sum()), 1) + max(int(negative.sum()), 1)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "beta", "whole_only"), [("mask_rcnn", 0.0, False), ("cascade", 1 / 9, True)])
@pytest.mark.parametrize("empty", [False, True])
def test_losses_by_hand(kind, beta, whole_only, empty):
    head, levels = head_and_levels(kind)
    targets = [objects(SIZES[0]), objects(SIZES[1], empty)]
    found = head.losses(levels, head(levels), SIZES, targets)
    parts = [by_hand(head, levels, size, target, i, beta, whole_only) for i, (size, target) in enumerate(zip(SIZES, targets, strict=True))]
    classification, regression, count = (sum(part) for part in zip(*parts, strict=True))
    torch.testing.assert_close(found["loss_rpn_cls"], classification / count)
    torch.testing.assert_close(found["loss_rpn_bbox"], regression / count)


@torch.no_grad()
def test_proposals_keep_the_limits():
    head, levels = head_and_levels("mask_rcnn")
    outputs = head(levels)
    for limits in (ProposalLimits(50, 1000), ProposalLimits(50, 60), ProposalLimits(1000, 1000)):
        for size, found in zip(SIZES, head.propose(levels, outputs, SIZES, limits), strict=True):
            assert len(found.boxes) <= min(limits.kept, 5 * limits.per_level)
            assert (found.objectness.diff() <= 0).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert found.boxes.min() >= 0
            assert (found.boxes.amax(0)[2:] <= torch.tensor([size[1], size[0]])).all()
    few, many = (head.propose(levels, outputs, SIZES, ProposalLimits(50, kept)) for kept in (10, 1000))
    assert torch.equal(few[0].boxes, many[0].boxes[:10])


@torch.no_grad()
def test_only_proposals_of_one_level_suppress_each_other():
    head, levels = head_and_levels("mask_rcnn")
    logits, deltas = head(levels)
    alone = [
        head.propose(levels, ([x if i == j else x - 1000 for j, x in enumerate(logits)], deltas), SIZES, ProposalLimits(40, 40))[0]
        for i in range(5)
    ]
    for found in alone:
        best = found.boxes[found.objectness > 0]
        assert (iou(best, best).fill_diagonal_(0) <= 0.7).all()
    together = head.propose(levels, (logits, deltas), SIZES, ProposalLimits(40, 200))[0]
    assert len(together.boxes) == sum(int((found.objectness > 0).sum()) for found in alone)
