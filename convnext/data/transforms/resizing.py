"""Resize, crop and pad an opened image, by Pillow, or its tensor, by torchvision: the same sizes and the same pixels as torchvision's.

Pillow resizes images of 8 bits, as when the published accuracies were measured. torchvision, whose import takes a second, is
imported only for tensors.
"""

from collections.abc import Sequence
from typing import TypeVar

import PIL.Image
from PIL.Image import Image, Resampling
from torch import Tensor

ImageT = TypeVar("ImageT", Image, Tensor)  # an opened image, or a tensor (C, H, W) with values from 0 to 255


def size_of(image: Image | Tensor) -> tuple[int, int]:
    """Return height and width of an opened image, or of its (C, H, W) tensor."""
    return (image.shape[-2], image.shape[-1]) if isinstance(image, Tensor) else (image.height, image.width)


def resized(image: ImageT, size: tuple[int, int], interpolation: str) -> ImageT:
    """Return the image resized to (height, width) by the filter of that name: nearest, nearest-exact, box, bilinear, bicubic, …"""
    if isinstance(image, Tensor):
        from torchvision.transforms.v2 import InterpolationMode, functional

        return functional.resize(image, list(size), InterpolationMode(interpolation))
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Resampling[interpolation.partition("-")[0].upper()])


def resized_to_short(image: ImageT, short: int, interpolation: str) -> ImageT:
    """Return the image resized in its proportions until its short side has that many pixels."""
    height, width = size_of(image)
    long = int(short * max(height, width) / min(height, width))
    return resized(image, (long, short) if width <= height else (short, long), interpolation)


def resized_to_cover(image: ImageT, size: tuple[int, int], interpolation: str) -> ImageT:
    """Return the image resized in its proportions until it just covers (height, width)."""
    height, width = size_of(image)
    scale = max(size[0] / height, size[1] / width)
    return resized(image, (max(size[0], round(height * scale)), max(size[1], round(width * scale))), interpolation)


def cropped_to_centre(image: ImageT, size: tuple[int, int]) -> ImageT:
    """Return the centre (height, width) of the image, which is black outside of it."""
    if isinstance(image, Tensor):
        from torchvision.transforms.v2 import functional

        return functional.center_crop(image, list(size))
    top, left = (_first(side, wanted) for side, wanted in zip(size_of(image), size, strict=True))
    return image.crop((left, top, left + size[1], top + size[0]))


def _first(side: int, wanted: int) -> int:
    """Return where the centre begins: half a pixel is rounded as torchvision rounds it."""
    return round((side - wanted) / 2) if wanted <= side else -((wanted - side) // 2)


def letterboxed(image: ImageT, size: tuple[int, int], interpolation: str, fill: Sequence[float]) -> ImageT:
    """Return the image resized to `fitting_size` in the middle of a ground of `size`.

    Args:
        image: with values from 0 to 255.
        size: height and width.
        interpolation: filter of the resize.
        fill: the ground's value of each channel, from 0 to 255; rounded if the image has 8 bits.
    """
    height, width = fitting_size(*size_of(image), size)
    inner = resized(image, (height, width), interpolation)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    ground = [min(255, max(0, round(value))) for value in fill]
    if isinstance(inner, Tensor):
        from torchvision.transforms.v2 import functional

        padding = [left, top, size[1] - width - left, size[0] - height - top]
        return functional.pad(inner, padding, fill=list(fill) if inner.is_floating_point() else ground)
    whole = PIL.Image.new(inner.mode, (size[1], size[0]), tuple(ground))
    whole.paste(inner, (left, top))
    return whole


def fitting_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (height, width) of an image's proportions that fits into `size`, at least one pixel a side."""
    scale = min(size[0] / height, size[1] / width)
    return min(size[0], max(1, round(height * scale))), min(size[1], max(1, round(width * scale)))


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows that cover a side begin, `stride` pixels apart; the last one is moved back to end with the side."""
    count = -(-(side - window) // stride) + 1
    return [min(i * stride, side - window) for i in range(count)]
