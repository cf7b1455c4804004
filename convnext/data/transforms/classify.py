"""Training augmentation for classification: timm's transforms, which are the published ones, with a faster resize."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import PIL.Image
import torch
import torch.nn.functional as F
from PIL import ImageOps
from PIL.Image import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import v2

from convnext.data.deep import DeepImage, Range, to_bytes
from convnext.data.images import to_pixels
from convnext.data.transforms.extra import Extra
from convnext.data.transforms.geometry import blurred, draw_angle, drawn, rotated
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ClassifyPreprocessing, ImageSize, sides, to_normalised
from convnext.errors import UsageError


@dataclass(frozen=True)
class Augmentation:
    """The settings of the training transform. By default it crops and mirrors only."""

    image_size: ImageSize = 224  # pixels a side, or (height, width)
    interpolation: str = "bicubic"  # filter of the resize, and of RandAugment's geometric operations
    whole: ClassifyPreprocessing | None = None  # if given, images are resized as it resizes them, in place of the random crop
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the random crop, as a fraction of the image's
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)  # its width over its height, relative to those of image_size
    flip: float = 0.5  # probability of the mirror image
    vflip: float = 0.0  # probability of the image upside down
    rotate: float = 0.0  # largest angle in degrees, either way
    blur: float = 0.0  # probability of a Gaussian blur
    rand_augment: str | None = None  # RandAugment in timm's notation, for instance rand-m9-mstd0.5-inc1
    trivial_augment: bool = False  # TrivialAugment, torchvision's "wide" version, in place of RandAugment
    color_jitter: float = 0.0  # strength of colour jitter, which RandAugment and TrivialAugment replace
    random_erasing: float = 0.0  # probability of erasing a rectangle with per-pixel noise
    mean: tuple[float, ...] = IMAGENET_MEAN  # subtracted from RGB in 0 to 1
    std: tuple[float, ...] = IMAGENET_STD  # divided by after that
    range: Range | None = None  # of images with more than 8 bits, see `DeepImage.pixels`
    extra: Extra | None = None  # a user's own augmentation, behind these and before normalisation
    channels: int = 3  # see `to_pixels`


def train_transform(settings: Augmentation) -> Callable[[Image | DeepImage | Tensor], Tensor]:
    """Return the function from an opened image to an augmented, normalised float32 tensor (channels, height, width) of `image_size`.

    The function also takes an image's uint8 tensor (3, H, W). It draws from the global generators of Python, NumPy and PyTorch: call
    it under `seeded`. The order, the settings and the draws are those of timm's `create_transform` as the paper's code calls it; so
    is the result, except for the rounding of `ResizedCrop`. Images with more than 8 bits keep their levels, except through
    RandAugment, TrivialAugment and colour jitter. What is off draws nothing.
    """
    if settings.whole is None:
        steps: list[Callable[..., object]] = [ResizedCrop(settings)]
    else:
        steps = [partial(to_pixels, scale=settings.range, channels=settings.channels), *settings.whole.geometry()]
    if settings.flip:
        steps.append(partial(_flip, probability=settings.flip))
    if settings.vflip or settings.rotate or settings.blur:
        steps.append(partial(_turned_and_blurred, settings=settings))
    if settings.rand_augment:
        steps += [_to_image, _rand_augment(settings.rand_augment, settings)]
    elif settings.trivial_augment:
        steps += [_to_image, v2.TrivialAugmentWide(fill=_ground(settings))]
    elif settings.color_jitter:
        steps += [_to_image, v2.ColorJitter(*(settings.color_jitter,) * 3)]
    if settings.extra is not None:
        steps.append(settings.extra)
    steps.append(to_normalised(settings.mean, settings.std, channels=settings.channels))
    if settings.random_erasing:
        steps.append(RandomErasing(settings.random_erasing, mode="pixel", device="cpu"))
    return v2.Compose(steps)


class ResizedCrop:
    """timm's random crop with timm's draws, resized by PyTorch in a third of Pillow's time.

    It takes an opened image, or its uint8 (3, H, W) tensor, and returns a uint8 (3, height, width) tensor of `image_size`, or a float32
    one from 0 to 255 if the image has more than 8 bits. PyTorch's 8-bit kernel is Pillow's algorithm, horizontal pass first; its weights
    have fewer bits, so 0.3% of the values are off by one level and one in a million by two. Pillow 13 runs the vertical pass first on
    some upright crops; where the first pass clips an overshoot, single values then differ more, as they do between Pillow 13 and the
    Pillow of the published runs.
    """

    def __init__(self, settings: Augmentation) -> None:
        self.size = sides(settings.image_size)
        stretch = self.size[1] / self.size[0]
        aspect = settings.crop_aspect[0] * stretch, settings.crop_aspect[1] * stretch
        self.crop = RandomResizedCropAndInterpolation(self.size, settings.crop_scale, aspect)
        self.range, self.channels = settings.range, settings.channels
        self.antialias = settings.interpolation != "nearest"
        self.mode = settings.interpolation if self.antialias else "nearest-exact"

    def __call__(self, image: Image | DeepImage | Tensor) -> Tensor:
        pixels = to_pixels(image, self.range, self.channels)
        top, left, height, width = self.crop.get_params(pixels, self.crop.scale, self.crop.ratio)
        # In an image of a few pixels the drawn crop can be empty: then the nearest row or column is taken.
        top, left = min(top, pixels.shape[1] - 1), min(left, pixels.shape[2] - 1)
        part = pixels[None, :, top : top + max(height, 1), left : left + max(width, 1)]
        part = part.contiguous(memory_format=torch.channels_last)
        return F.interpolate(part, self.size, mode=self.mode, antialias=self.antialias)[0]


def _flip(pixels: Tensor, probability: float) -> Tensor:
    return pixels.flip(-1) if torch.rand(1) < probability else pixels  # the draw of torchvision's flip, which timm uses


def _turned_and_blurred(pixels: Tensor, settings: Augmentation) -> Tensor:
    if drawn(settings.vflip):
        pixels = pixels.flip(-2)
    pixels = rotated(pixels, draw_angle(settings.rotate), [255 * mean for mean in settings.mean])
    return blurred(pixels, settings.blur)


def _ground(settings: Augmentation) -> list[int]:
    """Return the colour of what lies outside of an image, in 8 bits: its mean."""
    return [min(255, round(255 * mean)) for mean in settings.mean]


def _to_image(pixels: Tensor) -> Image:
    values = to_bytes(pixels).permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(values if values.shape[2] > 1 else values[..., 0])


def batch_mixing(
    mixup: float, cutmix: float, label_smoothing: float, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return the function that mixes a whole batch by mixup or CutMix, chosen evenly; None if both are off.

    The function takes images (N, 3, H, W) and labels (N,), N even, and returns mixed images and smoothed soft targets
    (N, num_classes). It draws from NumPy's global generator.

    Args:
        mixup: alpha of mixup, 0 for off.
        cutmix: alpha of CutMix, 0 for off.
        label_smoothing: fraction of a target that is spread over all classes.
        num_classes: length of a target.
    """
    if not (mixup or cutmix):
        return None
    mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)

    def apply(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # timm mixes in place and builds its targets on the labels' device.
        mixed: tuple[Tensor, Tensor] = mix(images.clone(memory_format=torch.preserve_format), labels)
        return mixed

    return apply


def _rand_augment(notation: str, settings: Augmentation) -> Callable[..., object]:
    how = {
        "translate_const": int(min(sides(settings.image_size)) * 0.45),
        "img_mean": tuple(_ground(settings)),
        "interpolation": str_to_pil_interp(settings.interpolation),
    }
    try:
        augment = rand_augment_transform(notation, how)
    except (AssertionError, ValueError, KeyError) as error:
        raise UsageError(f"augment.rand_augment: {notation!r} is not in timm's notation, for instance rand-m9-mstd0.5-inc1") from error
    for op in augment.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return augment


def _posterize(image: Image, bits_to_keep: int, **_: object) -> Image:
    # At its greatest strength the published augmentation keeps 0 bits, which gives a black image; Pillow 13 raises an error there.
    if bits_to_keep >= 8:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep else PIL.Image.new(image.mode, image.size)
