import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convnext.models.detection.boxes import DeltaCoder, clip, iou

corner, side = st.floats(-500, 1500, width=32), st.floats(1, 800, width=32)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
stds = st.sampled_from([(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2), (0.033, 0.033, 0.067, 0.067)])


@given(anchor=box, wanted=box, stds=stds)
def test_decoding_undoes_encoding(anchor, wanted, stds):
    anchor, wanted, coder = torch.tensor([anchor]), torch.tensor([wanted]), DeltaCoder(stds)
    growth = ((wanted[:, 2:] - wanted[:, :2]) / (anchor[:, 2:] - anchor[:, :2])).log().abs().max()
    if growth < math.log(1000 / 16):
        torch.testing.assert_close(coder.decode(anchor, coder.encode(anchor, wanted)), wanted, atol=0.05, rtol=1e-4)


def test_deltas_by_hand():
    anchor, wanted = torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([[12.0, 30.0, 52.0, 50.0]])
    deltas = DeltaCoder((0.1, 0.1, 0.2, 0.2)).encode(anchor, wanted)
    expected = [(32 - 20) / 20 / 0.1, (40 - 40) / 40 / 0.1, math.log(40 / 20) / 0.2, math.log(20 / 40) / 0.2]
    torch.testing.assert_close(deltas, torch.tensor([expected]))


@pytest.mark.parametrize("sign", [1, -1])
def test_growth_is_limited_both_ways(sign):
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    x1, y1, x2, y2 = DeltaCoder().decode(anchor, torch.tensor([[0.0, 0.0, sign * 1e4, sign * 1e4]]))[0].tolist()
    assert x2 - x1 == pytest.approx(16 * (1000 / 16) ** sign, rel=1e-4)
    assert y2 - y1 == pytest.approx(16 * (1000 / 16) ** sign, rel=1e-4)


@given(boxes=st.lists(box, min_size=1), height=st.integers(1, 900), width=st.integers(1, 900))
def test_clipped_boxes_lie_in_the_image(boxes, height, width):
    x1, y1, x2, y2 = clip(torch.tensor(boxes), (height, width)).unbind(-1)
    assert x1.min() >= 0
    assert y1.min() >= 0
    assert x2.max() <= width
    assert y2.max() <= height
    assert (x2 >= x1).all()
    assert (y2 >= y1).all()


def test_one_box_for_each_class():
    anchors, deltas = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]]), torch.randn(2, 3, 4)
    decoded = DeltaCoder().decode(anchors[:, None], deltas, (20, 20))
    for i in range(3):
        torch.testing.assert_close(decoded[:, i], DeltaCoder().decode(anchors, deltas[:, i], (20, 20)))


def test_iou_by_hand():
    first = torch.tensor([[0.0, 0.0, 10.0, 10.0], [3.0, 3.0, 3.0, 3.0]])
    second = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [10.0, 0.0, 20.0, 10.0], [3.0, 3.0, 3.0, 3.0]])
    torch.testing.assert_close(iou(first, second), torch.tensor([[1, 1 / 3, 0, 0], [0, 0, 0, 0]]))


def test_iou_with_no_boxes():
    assert iou(torch.empty(0, 4), torch.ones(3, 4)).shape == (0, 3)
    assert iou(torch.ones(3, 4), torch.empty(0, 4)).shape == (3, 0)
