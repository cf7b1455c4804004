"""Training augmentation for detection, and the resize to test with: the published ones, geometry as in mmdetection.

Images are resized as OpenCV's INTER_LINEAR does, which the published runs used: half-pixel centres, and no antialiasing where a
image shrinks. PyTorch's 8-bit kernel differs from it by rounding alone, a level at most. Masks are resized by INTER_NEAREST, which
is PyTorch's "nearest" exactly.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from convnext.data.deep import DeepImage, Range
from convnext.data.images import to_pixels
from convnext.data.run_lengths import EncodedMasks
from convnext.data.sources.objects import Objects
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, range_from_json, to_normalised


@dataclass(frozen=True)
class Sizes:
    """Pixels of training images; the defaults are published (those of DETR, Carion et al., 2020, which Swin and ConvNeXt took)."""

    short: tuple[int, ...] = tuple(range(480, 801, 32))  # of the short side, one is drawn
    longest: int = 1333  # the long side never gets longer
    crop_short: tuple[int, ...] = (400, 500, 600)  # of the short side before a crop, one is drawn
    crop: tuple[int, int] = (384, 600)  # least and greatest side of the crop


def train_transform(
    sizes: Sizes,
    flip: float = 0.5,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    scale: Range | None = None,
) -> Callable[[Image | DeepImage | Tensor, Objects], tuple[Tensor, Objects]]:
    """A function from an opened image, or its uint8 (3, H, W) tensor, and its objects to an augmented float32 (3, H', W') and its own.

    Flip, then one of two with equal chance: resize; or resize, crop and resize. Crowds and objects less than a pixel wide or high
    are left out before, as published; a crop may leave an image without objects. Sizes differ from image to image, nothing is
    padded. Its randomness comes from NumPy's global generator: call it under `seeded`.
    """
    return partial(_augment, sizes=sizes, flip=flip, normalised=to_normalised(mean, std), scale=scale)


@dataclass(frozen=True)
class DetectPreprocessing(Preprocessing):
    """How a detector wants its images; travels with its weights.

    Args:
        short, longest: pixels of the short side, or fewer where the long side would be longer than `longest`; published: 800, 1333.
        mean, std: subtracted from RGB in 0 to 1, and divided by.
        range: of images with more than 8 bits: the number that is white, or those that are black and white.
    """

    short: int = 800
    longest: int = 1333
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    range: Range | None = None

    def transform(self) -> Callable[[Image | DeepImage | Tensor], Tensor]:
        """A function from an opened image, or its uint8 (3, H, W) tensor, to a float32 (3, H', W').

        `Detector.predict(images, output_sizes)` gives boxes and masks in the image as it was.
        """
        normalised = to_normalised(self.mean, self.std)
        return partial(_prepare, short=self.short, longest=self.longest, normalised=normalised, scale=self.range)

    def to_json(self) -> dict[str, Any]:
        """Plain values, to travel in a weight file's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"]), "range": range_from_json(values)})


def _augment(
    image: Image | DeepImage | Tensor,
    objects: Objects,
    sizes: Sizes,
    flip: float,
    normalised: Callable[[Tensor], Tensor],
    scale: Range | None,
) -> tuple[Tensor, Objects]:
    pixels = to_pixels(image, scale)
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    objects = objects.take(~objects.iscrowd & (sides >= 1).all(1))
    if np.random.random() < flip:
        pixels, objects = flipped(pixels, objects)
    if np.random.random() < 0.5:
        pixels, objects = resized(pixels, objects, _one_of(sizes.crop_short), sizes.longest)
        pixels, objects = cropped(pixels, objects, *_crop_window(pixels.shape[1], pixels.shape[2], sizes.crop))
    pixels, objects = resized(pixels, objects, _one_of(sizes.short), sizes.longest)
    return normalised(pixels), objects


def _prepare(
    image: Image | DeepImage | Tensor, short: int, longest: int, normalised: Callable[[Tensor], Tensor], scale: Range | None
) -> Tensor:
    pixels = to_pixels(image, scale)
    return normalised(_interpolated(pixels, rescaled_size(pixels.shape[1], pixels.shape[2], short, longest)))


def _one_of(choices: tuple[int, ...]) -> int:
    return choices[np.random.randint(len(choices))]


def _crop_window(height: int, width: int, sides: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop; a side shorter than `sides` is kept whole."""
    least, most = sides
    crop_height = np.random.randint(min(height, least), min(height, most) + 1)
    crop_width = np.random.randint(min(width, least), min(width, most) + 1)
    top, left = np.random.randint(height - crop_height + 1), np.random.randint(width - crop_width + 1)
    return top, left, crop_height, crop_width


def rescaled_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Height and width for the short side to be `short`, or less where the long side would exceed `longest` (mmcv's rule)."""
    scale = min(longest / max(height, width), short / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(pixels: Tensor, objects: Objects, short: int, longest: int) -> tuple[Tensor, Objects]:
    """An image uint8 (3, H, W) and its objects, resized to `rescaled_size`; boxes are clipped to the image."""
    height, width = pixels.shape[1:]
    size = rescaled_size(height, width, short, longest)
    boxes = objects.boxes * torch.tensor([size[1] / width, size[0] / height] * 2)
    masks = objects.masks
    if isinstance(masks, EncodedMasks):
        masks = masks.resized(size)
    elif masks is not None:  # F.interpolate refuses none
        masks = F.interpolate(masks[None], size, mode="nearest")[0] if len(masks) else masks.new_zeros(0, *size)
    return _interpolated(pixels, size), replace(objects, boxes=_clipped(boxes, *size), masks=masks)


def cropped(pixels: Tensor, objects: Objects, top: int, left: int, height: int, width: int) -> tuple[Tensor, Objects]:
    """A window of an image (3, H, W) and the objects with some of their box within it."""
    boxes = _clipped(objects.boxes - torch.tensor([left, top] * 2), height, width)
    masks, rows, columns = objects.masks, slice(top, top + height), slice(left, left + width)
    if masks is not None:
        masks = masks.cropped(rows, columns) if isinstance(masks, EncodedMasks) else masks[:, rows, columns]
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return pixels[:, rows, columns], replace(objects, boxes=boxes, masks=masks).take(inside)


def flipped(pixels: Tensor, objects: Objects) -> tuple[Tensor, Objects]:
    """The mirror image of an image (3, H, W) and its objects."""
    left, top, right, bottom = objects.boxes.unbind(1)
    width = pixels.shape[2]
    boxes = torch.stack([width - right, top, width - left, bottom], 1)
    masks = objects.masks
    if masks is not None:
        masks = masks.flipped() if isinstance(masks, EncodedMasks) else masks.flip(-1)
    return pixels.flip(-1), replace(objects, boxes=boxes, masks=masks)


def _interpolated(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels[None].contiguous(memory_format=torch.channels_last), size, mode="bilinear", antialias=False)[0]


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    return boxes.clamp(min=torch.zeros(4), max=torch.tensor([width, height] * 2))
