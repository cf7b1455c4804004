"""From an image and its mask to the input of a segmenter, in training and in evaluation: the published transforms.

Source: the paper's `semantic_segmentation/configs`, which use mmsegmentation 0.11; the draws are that code's, in its order and from
NumPy's generator.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from convnext.data.annotations.mask_files import IGNORED
from convnext.data.deep import DeepImage, Range, to_bytes
from convnext.data.images import to_pixels
from convnext.data.transforms.combined import draw_quarters, draw_window, on_canvas
from convnext.data.transforms.extra import ExtraMask
from convnext.data.transforms.geometry import blurred, draw_angle, drawn, rotated
from convnext.data.transforms.photometric import PhotometricDistortion
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImageSize, Preprocessing, sides, to_normalised

Opened = Image | DeepImage | Tensor
MaskedOthers = Callable[[], tuple[Opened, Tensor]]  # gives another training image at random, and its mask
_TRIES = 10  # for a crop that shows more than one class


class TrainTransform:
    """A function from an opened image, or its uint8 (3, H, W) tensor, and its mask to an augmented image and mask of one size.

    The steps: a random resize that keeps the proportions, a random crop, a mirror image, an image upside down, a rotation, photometric
    distortion, blur, a mosaic of four images, normalisation, and padding to the crop size on the right and below, with 0 and, in the
    mask, with 255 (ignored). A rotation leaves corners with the mean colour and 255. Returns a float32 (3, height, width) image and a
    uint8 (height, width) mask of the crop's size.

    It draws from NumPy's global generator: call it under `seeded`.

    Args:
        crop_size: pixels a side, 512 or 640 as published, or (height, width).
        scale: the maximum pixels of an image's long and short side, which a random factor multiplies: (2048, 512) or (2560, 640) as
            published; None for the image's own size.
        ratio_range: of the factor on `scale`, drawn evenly.
        max_class_share: fraction of a crop's labelled pixels that one class may cover; after ten tries any crop is taken.
        flip: probability of the mirror image.
        distort: whether colours are distorted, in 8 bits.
        mean, std: subtracted from RGB in 0 to 1, and divided by after that.
        value_range: of images with more than 8 bits, see `DeepImage.pixels`.
        vflip: probability of the image upside down.
        rotate: largest angle in degrees, either way.
        blur: probability of a Gaussian blur.
        channels: see `to_pixels`; colours are distorted of three only.
        mosaic: probability of a mosaic.
        extra: a user's own augmentation, behind these and before normalisation and padding.
    """

    def __init__(
        self,
        crop_size: ImageSize,
        scale: tuple[int, int] | None,
        ratio_range: tuple[float, float] = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        distort: bool = True,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        value_range: Range | None = None,
        vflip: float = 0.0,
        rotate: float = 0.0,
        blur: float = 0.0,
        channels: int = 3,
        mosaic: float = 0.0,
        extra: ExtraMask | None = None,
    ) -> None:
        import torchvision.transforms.v2  # noqa: F401  # now, so that each loader process, forked from this one, does not import it again

        self.crop_size, self.scale, self.ratio_range = sides(crop_size), scale, ratio_range
        self.vflip, self.rotate, self.blur, self.fill = vflip, rotate, blur, [255 * value for value in mean]
        self.max_class_share, self.flip = max_class_share, flip
        self.distortion = PhotometricDistortion() if distort else None
        self.normalise: Callable[[Image | DeepImage | Tensor], Tensor] = to_normalised(mean, std, channels=channels)
        self.range, self.channels, self.mosaic, self.extra = value_range, channels, mosaic, extra

    def __call__(self, image: Opened, mask: Tensor, others: MaskedOthers | None = None) -> tuple[Tensor, Tensor]:
        """Return the image (C, height, width) and the mask; `others` gives those of which mosaics are made."""
        pixels, mask = self._augmented(image, mask)
        if others is not None and drawn(self.mosaic):
            pixels, mask = self._mosaic(pixels, mask, others)
        if (own := self.extra) is not None:
            pixels, mask = own(pixels, mask)
        padding = (0, self.crop_size[1] - mask.shape[1], 0, self.crop_size[0] - mask.shape[0])
        return F.pad(self.normalise(pixels), padding), F.pad(mask, padding, value=IGNORED)

    def _augmented(self, image: Opened, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixels (C, h, w) of an image and its mask, no larger than the crop, after all steps up to the blur."""
        pixels = to_pixels(image, self.range, self.channels)
        size = self._draw_size(mask.shape[0], mask.shape[1])
        mask = resize_mask(mask, size)
        rows, columns = self._draw_crop(mask)
        mask, pixels = mask[rows, columns], resize(pixels, size)[:, rows, columns]
        if np.random.rand() < self.flip:
            mask, pixels = mask.flip(-1), pixels.flip(-1)
        if drawn(self.vflip):
            mask, pixels = mask.flip(-2), pixels.flip(-2)
        angle = draw_angle(self.rotate)
        mask, pixels = rotated(mask[None], angle, [IGNORED], "nearest")[0], rotated(pixels, angle, self.fill)
        if self.distortion is not None:
            pixels = self.distortion(to_bytes(pixels).contiguous())
        return blurred(pixels, self.blur), mask

    def _mosaic(self, pixels: Tensor, mask: Tensor, others: MaskedOthers) -> tuple[Tensor, Tensor]:
        """Return a mosaic of the crop's size: a part of each of four augmented images, the first given."""
        quarters, parts, masks = draw_quarters(*self.crop_size), [], torch.full(self.crop_size, IGNORED, dtype=torch.uint8)
        for number, quarter in enumerate(quarters):
            if number:
                pixels, mask = self._augmented(*others())
            top, left, height, width = draw_window(mask.shape[0], mask.shape[1], quarter)
            parts.append(pixels[:, top : top + height, left : left + width])
            part = mask[top : top + height, left : left + width]
            masks[quarter[0] : quarter[0] + height, quarter[1] : quarter[1] + width] = part
        return on_canvas(parts, quarters, self.crop_size, self.fill), masks

    def _draw_size(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.ratio_range
        ratio = np.random.random_sample() * (high - low) + low
        long, short = self.scale or (max(height, width), min(height, width))
        return scaled_size(height, width, (int(long * ratio), int(short * ratio)))

    def _draw_crop(self, mask: Tensor) -> tuple[slice, slice]:
        """Return the first of ten crops in which no class covers too much, else an eleventh whatever it shows."""
        crop = self._draw_window(mask)
        for _ in range(_TRIES if self.max_class_share < 1 else 0):
            counts = torch.bincount(mask[crop].flatten(), minlength=IGNORED)[:IGNORED]
            if counts.max() < self.max_class_share * counts.sum():
                break
            crop = self._draw_window(mask)
        return crop

    def _draw_window(self, mask: Tensor) -> tuple[slice, slice]:
        height, width = self.crop_size
        top, left = (np.random.randint(0, max(side - crop, 0) + 1) for side, crop in zip(mask.shape, self.crop_size, strict=True))
        return slice(top, top + height), slice(left, left + width)


@dataclass(frozen=True)
class SegmentPreprocessing(Preprocessing):
    """How a segmenter takes its images.

    Args:
        scale: maximum pixels of the long and the short side, up to which an image is resized, proportions kept: (2048, 512) or
            (2560, 640) as published; None to keep its size.
        window, stride: pixels a side of the square windows to predict in, and from one to the next; None for the whole image at once.
        scales: factors on `scale`, or else on the image's size; predictions at all of them are averaged.
        mirror: predict each mirror image, too.
        mean, std: subtracted from RGB in 0 to 1, and divided by after that.
        range: of images with more than 8 bits: the number that is white, or those that are black and white.
        channels: see `to_pixels`.
    """

    scale: tuple[int, int] | None = None
    window: int | None = None
    stride: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False
    range: Range | None = None
    channels: int = 3

    def multi_scale(self) -> "SegmentPreprocessing":
        """Return the preprocessing of the published multi-scale test: whole images at six scales, each with its mirror image."""
        return replace(self, window=None, stride=None, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), mirror=True)

    def transform(self) -> Callable[[Image | DeepImage | Tensor], Tensor]:
        """Return the function from an opened image, or its uint8 (3, H, W) tensor, to a normalised float32 (3, H, W) tensor of its size.

        `convnext.models.segmentation.inference.predict` resizes it, and resizes the result back.
        """
        return to_normalised(self.mean, self.std, self.range, self.channels)


def mask_transform(how: SegmentPreprocessing) -> Callable[[Image | DeepImage | Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the function from an image and its mask (H, W) to both at the size at which the network takes the image, nothing random."""
    return partial(_scaled, how=how, normalise=to_normalised(how.mean, how.std, channels=how.channels))


def _scaled(
    image: Image | DeepImage | Tensor, mask: Tensor, how: SegmentPreprocessing, normalise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    height, width = mask.shape
    size = (height, width) if how.scale is None else scaled_size(height, width, how.scale)
    return normalise(resize(to_pixels(image, how.range, how.channels), size)), resize_mask(mask, size)


def scaled_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (height, width) of these proportions within `scale`, long and short side in any order; mmcv's `rescale_size`."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a uint8 (3, H, W) image at another size, bilinear: OpenCV's `INTER_LINEAR` to a level of 255, as mmcv resizes.

    Pixels are squares with half-integer centres; shrinking averages nothing (no antialiasing).
    """
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None].contiguous(memory_format=torch.channels_last), size, mode="bilinear")[0]


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask (H, W) at another size: OpenCV's `INTER_NEAREST`, whose pixel i is the old pixel floor(i * old / new)."""
    rows, columns = (
        torch.from_numpy(np.minimum(np.arange(new) * (1 / (new / old)), old - 1).astype(np.int64))
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]
