"""Training augmentation and test resize for detection: the published ones, with mmdetection's geometry.

Images are resized like OpenCV's INTER_LINEAR, which the published runs used: half-pixel centres, and no antialiasing where an
image shrinks. PyTorch's 8-bit kernel differs from it only by rounding, at most one level. Masks are resized by INTER_NEAREST, which
equals PyTorch's "nearest".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from convnext.data.annotations.objects import ImageObjects
from convnext.data.deep import DeepImage, Range
from convnext.data.images import to_pixels
from convnext.data.run_lengths import EncodedMasks
from convnext.data.transforms.combined import assembled, draw_quarters, draw_window, pasted, seen_through
from convnext.data.transforms.extra import ExtraObjects
from convnext.data.transforms.geometry import blurred, draw_angle, drawn
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, to_normalised
from convnext.data.transforms.rotation import turned
from convnext.data.transforms.visible import clipped


@dataclass(frozen=True)
class DetectAugmentation:
    """The settings of the training transform. Sizes are in pixels; the recipe's schema has the published ones."""

    short: tuple[int, ...]  # of the short side, one is drawn
    longest: int  # of the long side, at most
    crop_short: tuple[int, ...]  # of the short side before a crop, one is drawn
    crop: tuple[int, int]  # smallest and largest side of the crop
    flip: float = 0.5  # probability of the mirror image
    mean: tuple[float, ...] = IMAGENET_MEAN  # subtracted from RGB in 0 to 1
    std: tuple[float, ...] = IMAGENET_STD  # divided by after that
    range: Range | None = None  # of images with more than 8 bits, see `DeepImage.pixels`
    vflip: float = 0.0  # probability of the image upside down
    blur: float = 0.0  # probability of a Gaussian blur
    channels: int = 3  # see `to_pixels`
    rotate: float = 0.0  # largest angle in degrees, either way
    copy_paste: float = 0.0  # probability of objects of another image on an image, for objects with masks
    mosaic: float = 0.0  # probability of a mosaic of four images
    extra: ExtraObjects | None = None  # a user's own augmentation, behind these and before normalisation


Opened = Image | DeepImage | Tensor
Others = Callable[[], tuple[Opened, ImageObjects]]  # gives another training image at random, and its objects
ObjectsTransform = Callable[..., tuple[Tensor, ImageObjects]]  # of an opened image and its objects, and of `Others`


def train_transform(settings: DetectAugmentation) -> ObjectsTransform:
    """Return the function from an opened image and its objects to a normalised float32 tensor (3, H', W') and the objects in it.

    The function also takes an image's uint8 tensor (3, H, W). It flips, and then either resizes, or resizes, crops and resizes, with
    equal probability. Before that it drops crowds and objects less than a pixel wide or high, as published; a crop may leave an image
    without objects. Sizes differ from image to image, nothing is padded. It draws from NumPy's global generator: call it under `seeded`.

    A mosaic takes the place of flip, resize and crop; copy-paste, rotation and blur follow. The first two take other images from the
    function's third argument, `Others`.
    """
    return partial(_augment, settings=settings, normalised=to_normalised(settings.mean, settings.std, channels=settings.channels))


@dataclass(frozen=True)
class DetectPreprocessing(Preprocessing):
    """How a detector takes its images, and how many objects it gives.

    Args:
        short, longest: pixels of the short side, or fewer if the long side would be longer than `longest`; published: 800, 1333.
        mean, std: subtracted from RGB in 0 to 1, and divided by.
        range: of images with more than 8 bits: the number that is white, or those that are black and white.
        channels: see `to_pixels`.
        most: max number of objects in an image; with tiles, in each of them.
        tile: side in pixels of the square tiles that the image is cut into, each taken like an image; None for the whole image alone.
        overlap: of neighbouring tiles, as a fraction of their side.
    """

    short: int = 800
    longest: int = 1333
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    range: Range | None = None
    channels: int = 3
    most: int = 100
    tile: int | None = None
    overlap: float = 0.2

    def transform(self) -> Callable[[Image | DeepImage | Tensor], Tensor]:
        """Return the function from an opened image, or its uint8 (3, H, W) tensor, to a float32 (3, H', W'), or with tiles to its pixels.

        `Detector.predict(images, output_sizes)` gives boxes and masks in pixels of the original image.
        """
        normalised = to_normalised(self.mean, self.std, channels=self.channels)
        opened = partial(to_pixels, scale=self.range, channels=self.channels)
        if self.tile is not None:
            return opened
        return partial(_prepare, short=self.short, longest=self.longest, normalised=normalised, opened=opened)


def objects_transform(how: DetectPreprocessing) -> ObjectsTransform:
    """Return the function from an image and its objects to what the network takes and the objects in its pixels, nothing random.

    As in training it drops crowds and objects less than a pixel wide or high.
    """
    return partial(_resize_only, how=how, normalised=to_normalised(how.mean, how.std, channels=how.channels))


def _resize_only(
    image: Image | DeepImage | Tensor, objects: ImageObjects, how: DetectPreprocessing, normalised: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ImageObjects]:
    pixels, objects = resized(to_pixels(image, how.range, how.channels), _trained(objects), how.short, how.longest)
    return normalised(pixels), objects


def _trained(objects: ImageObjects) -> ImageObjects:
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    return objects.take(~objects.iscrowd & (sides >= 1).all(1))


def _augment(
    image: Opened,
    objects: ImageObjects,
    others: Others | None = None,
    *,
    settings: DetectAugmentation,
    normalised: Callable[[Tensor], Tensor],
) -> tuple[Tensor, ImageObjects]:
    pixels, objects = _trainable(image, objects, settings)
    ground = [255 * value for value in settings.mean]
    if others is not None and drawn(settings.mosaic):
        pixels, objects = _mosaic(pixels, objects, others, settings, ground)
    else:
        pixels, objects = _jittered(pixels, objects, settings)
    if others is not None and drawn(settings.copy_paste):
        pixels, objects = pasted(pixels, objects, *_jittered(*_trainable(*others(), settings), settings))
    pixels, objects = turned(pixels, objects, draw_angle(settings.rotate), ground)
    pixels = blurred(pixels, settings.blur)
    if (own := settings.extra) is not None:
        pixels, objects = own(pixels, objects)
    return normalised(pixels), objects


def _trainable(image: Opened, objects: ImageObjects, settings: DetectAugmentation) -> tuple[Tensor, ImageObjects]:
    """Return the pixels (C, H, W) of an opened image, and its objects that are trained on."""
    return to_pixels(image, settings.range, settings.channels), _trained(objects)


def _mirrored(pixels: Tensor, objects: ImageObjects, settings: DetectAugmentation) -> tuple[Tensor, ImageObjects]:
    if np.random.random() < settings.flip:
        pixels, objects = flipped(pixels, objects)
    return upside_down(pixels, objects) if drawn(settings.vflip) else (pixels, objects)


def _jittered(pixels: Tensor, objects: ImageObjects, settings: DetectAugmentation) -> tuple[Tensor, ImageObjects]:
    """Return an image and its objects after the published flip, resize and crop."""
    pixels, objects = _mirrored(pixels, objects, settings)
    if np.random.random() < 0.5:
        pixels, objects = resized(pixels, objects, _one_of(settings.crop_short), settings.longest)
        pixels, objects = cropped(pixels, objects, *_crop_window(pixels.shape[1], pixels.shape[2], settings.crop))
    return resized(pixels, objects, _one_of(settings.short), settings.longest)


def _mosaic(
    pixels: Tensor, objects: ImageObjects, others: Others, settings: DetectAugmentation, fill: list[float]
) -> tuple[Tensor, ImageObjects]:
    """Return a mosaic of the first image's size in training. Its four images are between as small as fills their quarters and usual size.

    One image after the other is read and resized, so that at most two are in memory in their own size.
    """
    short = _one_of(settings.short)
    size = rescaled_size(pixels.shape[1], pixels.shape[2], short, settings.longest)
    parts, quarters = [], draw_quarters(*size)
    for number, quarter in enumerate(quarters):
        if number:
            pixels, objects = _trainable(*others(), settings)
        pixels, objects = _mirrored(pixels, objects, settings)
        usual = rescaled_size(pixels.shape[1], pixels.shape[2], short, settings.longest)
        factor = np.random.uniform(min(1, max(quarter[2] / usual[0], quarter[3] / usual[1])), 1)
        pixels, objects = scaled(pixels, objects, (ceil(usual[0] * factor), ceil(usual[1] * factor)))
        top, left, height, width = window = draw_window(pixels.shape[1], pixels.shape[2], quarter)
        parts.append((pixels[:, top : top + height, left : left + width], seen_through(objects, window)))
    return assembled(parts, quarters, size, fill)


def _prepare(
    image: Image | DeepImage | Tensor,
    short: int,
    longest: int,
    normalised: Callable[[Tensor], Tensor],
    opened: Callable[[Image | DeepImage | Tensor], Tensor],
) -> Tensor:
    pixels = opened(image)
    return normalised(_interpolated(pixels, rescaled_size(pixels.shape[1], pixels.shape[2], short, longest)))


def _one_of(choices: tuple[int, ...]) -> int:
    return choices[np.random.randint(len(choices))]


def _crop_window(height: int, width: int, sides: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random crop; a side shorter than `sides` is kept whole."""
    smallest, largest = sides
    crop_height = np.random.randint(min(height, smallest), min(height, largest) + 1)
    crop_width = np.random.randint(min(width, smallest), min(width, largest) + 1)
    top, left = np.random.randint(height - crop_height + 1), np.random.randint(width - crop_width + 1)
    return top, left, crop_height, crop_width


def rescaled_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return height and width with a short side of `short`, or less if the long side would exceed `longest` (mmcv's rule)."""
    scale = min(longest / max(height, width), short / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(pixels: Tensor, objects: ImageObjects, short: int, longest: int) -> tuple[Tensor, ImageObjects]:
    """Return an image uint8 (3, H, W) and its objects, resized to `rescaled_size`; boxes are clipped to the image."""
    return scaled(pixels, objects, rescaled_size(pixels.shape[1], pixels.shape[2], short, longest))


def scaled(pixels: Tensor, objects: ImageObjects, size: tuple[int, int]) -> tuple[Tensor, ImageObjects]:
    """Return an image uint8 (3, H, W) and its objects, resized to (height, width); boxes are clipped to the image."""
    height, width = pixels.shape[1:]
    boxes = objects.boxes * torch.tensor([size[1] / width, size[0] / height] * 2)
    masks = objects.masks
    if isinstance(masks, EncodedMasks):
        masks = masks.resized(size)
    elif masks is not None:  # F.interpolate refuses an empty tensor
        masks = F.interpolate(masks[None], size, mode="nearest")[0] if len(masks) else masks.new_zeros(0, *size)
    return _interpolated(pixels, size), replace(objects, boxes=clipped(boxes, *size), masks=masks)


def cropped(pixels: Tensor, objects: ImageObjects, top: int, left: int, height: int, width: int) -> tuple[Tensor, ImageObjects]:
    """Return a window of an image (3, H, W) and the objects whose box overlaps with it."""
    boxes = clipped(objects.boxes - torch.tensor([left, top] * 2), height, width)
    masks, rows, columns = objects.masks, slice(top, top + height), slice(left, left + width)
    if masks is not None:
        masks = masks.cropped(rows, columns) if isinstance(masks, EncodedMasks) else masks[:, rows, columns]
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return pixels[:, rows, columns], replace(objects, boxes=boxes, masks=masks).take(inside)


def flipped(pixels: Tensor, objects: ImageObjects) -> tuple[Tensor, ImageObjects]:
    """Return the mirror image of an image (3, H, W) and its objects."""
    left, top, right, bottom = objects.boxes.unbind(1)
    width = pixels.shape[2]
    boxes = torch.stack([width - right, top, width - left, bottom], 1)
    masks = objects.masks
    if masks is not None:
        masks = masks.flipped() if isinstance(masks, EncodedMasks) else masks.flip(-1)
    return pixels.flip(-1), replace(objects, boxes=boxes, masks=masks)


def upside_down(pixels: Tensor, objects: ImageObjects) -> tuple[Tensor, ImageObjects]:
    """Return an image (3, H, W) and its objects with the top at the bottom."""
    left, top, right, bottom = objects.boxes.unbind(1)
    height = pixels.shape[1]
    boxes = torch.stack([left, height - bottom, right, height - top], 1)
    masks = objects.masks
    if masks is not None:
        masks = masks.upside_down() if isinstance(masks, EncodedMasks) else masks.flip(-2)
    return pixels.flip(-2), replace(objects, boxes=boxes, masks=masks)


def _interpolated(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels[None].contiguous(memory_format=torch.channels_last), size, mode="bilinear", antialias=False)[0]
