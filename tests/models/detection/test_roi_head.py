"""The cascade in plain steps, against the head that runs it."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from models.detection.detectors import scene, small
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss, roi_align

from convnext.models.detection.boxes import DeltaCoder, clip
from convnext.models.detection.postprocess import paste_masks
from convnext.models.detection.targets import Sampler, Truth

SIZE = (256, 320)
STAGES = [(0.5, 1.0, (0.1, 0.1, 0.2, 0.2)), (0.6, 0.5, (0.05, 0.05, 0.1, 0.1)), (0.7, 0.25, (0.033, 0.033, 0.067, 0.067))]


@pytest.fixture(scope="module")
def case():
    head = randomise(small("cascade").roi_head).eval()
    for box_head, mask_head in zip(head.box_heads, head.mask_heads, strict=True):
        for layer in (box_head.fc_reg, box_head.fc_cls):
            layer.weight.data *= 3
        mask_head.conv_logits.weight.data *= 10  # so that a mean of masks is not a mask of means
    generator = torch.Generator().manual_seed(2)
    levels = [torch.randn(1, 32, SIZE[0] // s, SIZE[1] // s, generator=generator) for s in (4, 8, 16, 32)]
    target = scene(*SIZE, [(20, 30, 120, 200), (150, 40, 300, 130), (40, 40, 90, 90)], [2, 0, 1])[1]
    noise = 12 * torch.randn(40, 4, generator=generator)
    near = target["boxes"][torch.arange(40) % 3] + noise
    corner = torch.rand(60, 2, generator=generator) * 150
    far = torch.cat([corner, corner + 20 + 80 * torch.rand(60, 2, generator=generator)], 1)
    return head, levels, clip(torch.cat([near, far]), SIZE), Truth(target["boxes"], target["labels"], target["masks"])


def regions(levels, boxes, size):
    side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    maps = []
    for box, s in zip(boxes, side.tolist(), strict=True):
        i = 0 if s < 112 else 1 if s < 224 else 2 if s < 448 else 3
        maps.append(roi_align(levels[i], [box[None]], size, 1 / (4, 8, 16, 32)[i], 0, True))
    return torch.cat(maps)


def refine(coder, boxes, deltas, labels):
    rows = torch.arange(len(boxes))
    return coder.decode(boxes, deltas[rows, labels], SIZE)


@torch.no_grad()
def test_losses_in_plain_steps(case):
    head, levels, boxes, objects = case
    head.sampler = Sampler(10**7, 0.5)
    found = head.losses(levels, [boxes], [SIZE], [objects])
    for number, (threshold, weight, stds) in enumerate(STAGES):
        overlap, nearest = box_iou(boxes, objects.boxes).max(1)
        is_object = overlap >= threshold
        # The objects' own boxes first, then what overlaps one enough, then the background.
        assert 0 < is_object.sum() < len(boxes)
        which = torch.cat([torch.arange(3), nearest[is_object]])
        rois = torch.cat([objects.boxes, boxes[is_object], boxes[~is_object]])
        labels = torch.cat([objects.labels[which], torch.full((int((~is_object).sum()),), 3)])
        logits, deltas = head.box_heads[number](regions(levels, rois, 7))
        coder = DeltaCoder(stds)
        predicted = coder.decode(rois[: len(which)], deltas[torch.arange(len(which)), labels[: len(which)]])
        wanted = {
            "loss_cls": F.cross_entropy(logits, labels) * weight,
            "acc": 100 * (logits.argmax(1) == labels).float().mean(),
            "loss_bbox": 10 * generalized_box_iou_loss(predicted, objects.boxes[which]).sum() / len(labels) * weight,
        }
        drawn = head.mask_heads[number](regions(levels, rois[: len(which)], 14), labels[: len(which)])
        mask = [
            roi_align(objects.masks[o][None, None].float(), [box[None]], 28, 1.0, 0, True)[0, 0] >= 0.5
            for o, box in zip(which.tolist(), rois, strict=False)
        ]
        wanted["loss_mask"] = F.binary_cross_entropy_with_logits(drawn, torch.stack(mask).float()) * weight
        for name, value in wanted.items():
            torch.testing.assert_close(
                found[f"s{number}.{name}"], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=f"s{number}.{name}": f"{n}: {m}"
            )
        likeliest = torch.where(labels < 3, labels, logits[:, :3].argmax(1))
        boxes = refine(coder, rois, deltas, likeliest)[3:]


@torch.no_grad()
def test_detections_in_plain_steps(case):
    head, levels, boxes, _ = case
    (found,) = head.detect(levels, [boxes], [SIZE], [SIZE])
    total = 0
    for number, (_, _, stds) in enumerate(STAGES):
        logits, deltas = head.box_heads[number](regions(levels, boxes, 7))
        total, coder = total + logits, DeltaCoder(stds)
        if number < 2:
            boxes = refine(coder, boxes, deltas, logits[:, :3].argmax(1))
    scores = (total / 3).softmax(1)[:, :3]
    rows, labels = (scores > 0.05).nonzero(as_tuple=True)
    every = coder.decode(boxes[rows], deltas[rows, labels], SIZE)
    kept = batched_nms(every, scores[rows, labels], labels, 0.5)[:100]
    assert len(kept) > 30
    assert torch.equal(found["labels"], labels[kept])
    torch.testing.assert_close(found["scores"], scores[rows, labels][kept], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found["boxes"], every[kept], atol=0.05, rtol=0)
    seen = regions(levels, every[kept], 14)
    drawn = torch.stack([mask_head(seen, labels[kept]).sigmoid() for mask_head in head.mask_heads]).mean(0)
    pasted = paste_masks(drawn, every[kept], SIZE)
    assert (found["masks"][:, 0] != pasted).float().mean() < 1e-4
    assert pasted.any((1, 2)).float().mean() > 0.9
