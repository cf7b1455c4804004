"""Sizes and pixels of images that Pillow resizes, crops and pads, beside torchvision's."""

import numpy as np
import pytest
import torch
from helpers import sample_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode, functional

from convnext.data.images import to_pixels
from convnext.data.transforms.resizing import cropped_to_centre, fitting_size, letterboxed, resized, resized_to_short

FILTERS = ["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
SIZES = [(1, 1), (1, 90), (33, 64), (64, 33), (50, 50)]


def kinds(size):
    """An image in RGB, in grey, and as the float tensor of a deep image."""
    image = sample_image(size=size)
    return [image, image.convert("L"), to_pixels(image).float() / 3]


def same(found, wanted):
    assert type(found) is type(wanted)
    return torch.equal(found, wanted) if isinstance(found, torch.Tensor) else np.array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_resize_is_torchvisions(size, interpolation):
    mode = InterpolationMode(interpolation)
    for image in kinds(size)[: 2 if interpolation in ("box", "hamming", "lanczos") else 3]:  # filters that PyTorch may lack
        assert same(resized(image, (20, 31), interpolation), functional.resize(image, [20, 31], mode))
        if max(size) < 64:
            assert same(resized_to_short(image, 37, interpolation), v2.Resize(37, mode)(image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wanted", [(32, 32), (33, 51), (64, 20), (7, 8)])
def test_a_centre_is_torchvisions_beyond_the_image_too(size, wanted):
    for image in kinds(size):
        assert same(cropped_to_centre(image, wanted), functional.center_crop(image, list(wanted)))


@pytest.mark.parametrize("size", SIZES)
def test_a_letterbox_is_the_resized_image_on_a_ground(size):
    for image in kinds(size):
        fill = [100.4] if getattr(image, "mode", "") == "L" else [100.4, -3.0, 300.0]
        height, width = fitting_size(size[1], size[0], (40, 60))
        top, left = (40 - height) // 2, (60 - width) // 2
        inner = functional.resize(image, [height, width], InterpolationMode.BICUBIC)
        ground = fill if isinstance(image, torch.Tensor) else [round(min(255, max(0, value))) for value in fill]
        wanted = functional.pad(inner, [left, top, 60 - width - left, 40 - height - top], fill=ground)
        assert same(letterboxed(image, (40, 60), "bicubic", fill), wanted)
