"""The example of docs/extend/head.md: a head of one's own over any backbone, without an auxiliary head."""

import pytest
import torch
from registered import imported

import convnext
from convnext.models.segmentation.inference import predict
from convnext.models.segmentation.upernet import losses


@pytest.fixture
def own_head():
    with imported("examples.own_head") as module:
        yield module


def test_it_is_trained_and_predicts_as_segmenters_do(own_head):
    model = convnext.create_model("sum_head_convnext_atto", num_classes=3, channels=8, depths=(1, 1, 1, 1), widths=(8, 8, 16, 16))
    assert isinstance(model.network, own_head.SumHead)
    image, mask = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    parts = losses(model.train(), image, mask)
    assert parts.keys() == {"decode"}
    parts["decode"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert predict(model.eval(), image[0]).shape[-2:] == (64, 64)
