"""The mean and standard deviation of a dataset's channels, from a bounded number of its images."""

from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from convnext.data.deep import DeepImage, Range
from convnext.data.images import CorruptImageError, to_pixels
from convnext.errors import ConvnextError

_MAX_IMAGES = 1000
_MAX_SIDE = 512  # rows and columns of an image that are looked at
_MIN_STD = 1 / 255  # of a channel that is the same everywhere
_DIGITS = 6


class Measurable(Protocol):
    """Images by position."""

    def __len__(self) -> int: ...
    def pixels(self, index: int) -> Image | Tensor | DeepImage: ...


def measure(source: Measurable, scale: Range | None, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel, from 0 (black) to 1 (white), in up to 1,000 images evenly spread.

    Each image counts alike, whatever its size. Of a large one every n-th row and column is read. Images that can't be read are skipped.

    Args:
        source: the images.
        scale, channels: as for `to_pixels`.

    Raises ConvnextError if no image can be read.
    """
    sums, squares, count = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64), 0
    reason = ""
    for index in range(0, len(source), max(1, -(-len(source) // _MAX_IMAGES))):
        try:
            pixels = to_pixels(source.pixels(index), scale, channels)
        except CorruptImageError as error:
            reason = reason or str(error)
            continue
        rows, columns = (max(1, -(-side // _MAX_SIDE)) for side in pixels.shape[1:])
        values = pixels[:, ::rows, ::columns].flatten(1).double() / 255
        sums, squares, count = sums + values.mean(1), squares + values.square().mean(1), count + 1
    if not count:
        raise ConvnextError(f"data.mean=auto: no image can be read: {reason or 'there are none'}")
    mean = sums / count
    std = (squares / count - mean.square()).clamp(min=_MIN_STD**2).sqrt()
    return tuple(round(value, _DIGITS) for value in mean.tolist()), tuple(round(value, _DIGITS) for value in std.tolist())
