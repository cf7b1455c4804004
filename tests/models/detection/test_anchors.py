import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from convnext.models.detection import anchors

CPU = torch.device("cpu")


def test_anchors_by_hand():
    fine, coarse = anchors.grid([(2, 3), (1, 2)], [4, 8], CPU)
    assert fine.shape == (2 * 3 * 3, 4)
    assert coarse.shape == (1 * 2 * 3, 4)
    # the square anchor of the second row's third position: 8 strides a side around (8, 4)
    torch.testing.assert_close(fine[(1 * 3 + 2) * 3 + 1], torch.tensor([8.0 - 16, 4.0 - 16, 8.0 + 16, 4.0 + 16]))
    # the flat one of the coarse map's second position: half as high as wide, of the same area
    x1, y1, x2, y2 = coarse[3].tolist()
    assert (x1 + x2, y1 + y2) == (16, 0)
    assert x2 - x1 == pytest.approx(64 * math.sqrt(2))
    assert y2 - y1 == pytest.approx(64 / math.sqrt(2))


def test_torchvision_makes_other_anchors():
    """If this fails, torchvision's generator may serve instead of ours."""
    theirs = AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),))(ImageList(torch.empty(1, 3, 32, 32), [(32, 32)]), [torch.empty(1, 1, 8, 8)])[0]
    (ours,) = anchors.grid([(8, 8)], [4], CPU)
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() > 0.3


def test_usable_positions_are_those_of_the_images_own_padding():
    flags = anchors.usable([(4, 6), (2, 3)], [16, 32], (32, 64), CPU)
    fine = torch.zeros(4, 6, 3, dtype=torch.bool)
    fine[:2, :4] = True
    coarse = torch.zeros(2, 3, 3, dtype=torch.bool)
    coarse[:1, :2] = True
    assert torch.equal(flags, torch.cat([fine.flatten(), coarse.flatten()]))


def test_inside_is_open_at_the_far_border_as_in_mmdetection():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 4.0], [0.0, 0.0, 10.0, 4.0], [-0.1, 0.0, 5.0, 4.0], [0.0, 0.0, 5.0, 5.0]])
    assert anchors.inside(boxes, (5, 10)).tolist() == [True, False, False, False]
