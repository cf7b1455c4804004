"""The detector in fixed shapes finds what the detector finds."""

import pytest
import torch
from helpers import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from models.detection.detectors import BUILDERS, small
from torchvision.ops import batched_nms

from convnext.models.detection.fixed import FixedDetector, _has_area, keep
from convnext.models.detection.postprocess import paste_masks
from convnext.models.detection.roi_align import pool, to_rois


@pytest.mark.parametrize("kind", list(BUILDERS))
@torch.no_grad()
def test_same_detections_in_a_padded_image(kind):
    model = randomise(small(kind), seed=3).eval()
    image = torch.randn(3, 75, 118, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(1, 3, 96, 128)
    padded[0, :, :75, :118] = image
    (wanted,) = model.predict([image])
    boxes, labels, scores, masks = (one[0] for one in FixedDetector(model)(padded, torch.tensor([[75, 118]]), torch.tensor(0.05)))
    count = len(wanted["scores"])
    assert 0 < count == int((scores > 0).sum())
    assert torch.equal(labels[:count], wanted["labels"])
    torch.testing.assert_close(boxes[:count], wanted["boxes"], atol=1e-2, rtol=0)
    torch.testing.assert_close(scores[:count], wanted["scores"], atol=1e-4, rtol=0)
    pasted = paste_masks(masks[:count], boxes[:count], (75, 118))[:, None]
    assert (pasted ^ wanted["masks"]).float().mean() < 1e-3


@torch.no_grad()
def test_a_batch_gives_what_each_image_gives():
    model = FixedDetector(randomise(small("cascade"), seed=3).eval(), most=7, pasted=True)
    images, sizes = torch.zeros(2, 3, 64, 96), torch.tensor([[64, 96], [41, 70]])
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height))
    together = model(images, sizes, torch.tensor(0.05))
    assert [tuple(one.shape) for one in together] == [(2, 7, 4), (2, 7), (2, 7), (2, 7, 28, 28), (2, 7, 64, 96)]
    for i in range(2):
        for one, alone in zip(together, model(images[i : i + 1], sizes[i : i + 1], torch.tensor(0.05)), strict=True):
            torch.testing.assert_close(one[i].float(), alone[0].float(), atol=1e-3, rtol=0)
        boxes, masks, pasted = together[0][i], together[3][i], together[4][i]
        assert (pasted ^ paste_masks(masks, boxes, (64, 96))).float().mean() < 1e-4
        assert pasted.any((1, 2)).all()


@given(st.integers(0, 10**6), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_keep_is_non_maximum_suppression_of_each_list(seed, count):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(3, count, 2, generator=generator) * 20
    boxes = torch.cat([low, low + torch.rand(3, count, 2, generator=generator) * 20], -1)
    scores = torch.rand(3, count, generator=generator)
    kept = keep(boxes, scores, 0.5, torch.tensor(0.3))
    lists = torch.arange(3)[:, None].expand(3, count)
    over = scores > 0.3
    wanted = torch.zeros_like(kept)
    where = over.nonzero()[batched_nms(boxes[over], scores[over], lists[over], 0.5)]
    wanted[where[:, 0], where[:, 1]] = True
    assert torch.equal(kept, wanted)


@torch.no_grad()
def test_boxes_are_pooled_from_their_level_and_those_without_area_give_zeros():
    model = small().eval()
    levels = [torch.randn(1, 4, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32)]
    boxes = torch.tensor([[3.0, 5, 40, 60], [0, 0, 250, 240], [10, 10, 10, 30], [-5, -9, 130, 128], [255, 255, 256, 256]])
    wanted = pool(levels, (4, 8, 16, 32), to_rois([boxes]), 7)
    found = FixedDetector(model)._pool(levels, boxes[None], 7)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not found[~_has_area(boxes)].any()
