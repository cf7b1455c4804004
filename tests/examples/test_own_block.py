"""The example of docs/extend/network.md: a ConvNeXt with a block of one's own is a network like any other."""

import pytest
import torch
from registered import imported

import convnext

SMALL = {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16)}


@pytest.fixture
def own_block():
    with imported("examples.own_block") as module:
        yield module


def test_every_block_is_ones_own_and_is_trained(own_block):
    torch.manual_seed(0)  # a gate of two units may be closed for all inputs
    for more in ({}, {"layer_scale": 0.0}):
        model = convnext.create_model("gated_convnext", num_classes=3, **SMALL, **more)
        assert sum(isinstance(module, own_block.GatedBlock) for module in model.modules()) == 4
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
        assert all(parameter.grad.any() for name, parameter in model.named_parameters() if "gate.2" in name)
    assert model.layer_group("network.stages.3.0.gate.0.weight") == model.layer_group("network.stages.3.0.pwconv1.weight")


def test_heads_go_over_it(own_block):
    model = convnext.create_model("upernet_gated_convnext", num_classes=3, channels=8, auxiliary_channels=8, **SMALL).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape[:2] == (1, 3)
