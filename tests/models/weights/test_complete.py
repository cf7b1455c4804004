"""Weights of RGB under images of other channels: timm's rule, for every kind of network."""

import pytest
import torch
from helpers import relative_error
from timm.models import adapt_input_conv

import convnext
from convnext.errors import ConvnextError
from convnext.models.weights.complete import adapt_stem

SMALL = {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32), "layer_scale": 1.0}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_stems_are_adapted_as_timm_adapts_them(channels):
    weight = torch.randn(8, 3, 4, 4)
    assert torch.allclose(adapt_stem(weight, channels), adapt_input_conv(channels, weight), atol=1e-6)
    assert adapt_stem(weight.half(), channels).dtype == torch.float16


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("convnext_atto", SMALL),
        ("upernet_convnext_atto", SMALL | {"channels": 8, "auxiliary_channels": 8}),
        ("mask_rcnn_convnext_atto", SMALL | {"channels": 8, "fc_channels": 8}),
    ],
)
def test_weights_of_rgb_start_networks_of_other_channels(name, more):
    rgb = convnext.create_model(name, num_classes=3, **more)
    key = next(key for key, tensor in rgb.state_dict().items() if tensor.ndim == 4 and tensor.shape[1] == 3)
    for channels in (1, 5):
        found = convnext.create_model(name, num_classes=3, in_channels=channels, weights=rgb.state_dict(), **more)
        assert torch.allclose(found.state_dict()[key], adapt_stem(rgb.state_dict()[key], channels))
        assert all(torch.equal(tensor, rgb.state_dict()[other]) for other, tensor in found.state_dict().items() if other != key)


@torch.no_grad()
def test_a_grey_network_gives_what_the_same_image_in_rgb_gave():
    rgb = convnext.create_model("convnext_atto", num_classes=3, **SMALL).eval()
    grey = convnext.create_model("convnext_atto", num_classes=3, in_channels=1, weights=rgb.state_dict(), **SMALL).eval()
    image = torch.randn(2, 1, 64, 64)
    assert relative_error(grey(image), rgb(image.expand(2, 3, 64, 64))) < 1e-4


def test_weights_of_other_channels_than_rgb_are_not_adapted():
    five = convnext.create_model("convnext_atto", num_classes=3, in_channels=5, **SMALL)
    with pytest.raises(ConvnextError, match="misshapen: .*instead of"):
        convnext.create_model("convnext_atto", num_classes=3, in_channels=4, weights=five.state_dict(), **SMALL)
