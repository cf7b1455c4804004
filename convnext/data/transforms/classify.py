"""Training augmentation: timm's transforms, which are the published ones, but for a faster resize."""

from collections.abc import Callable
from functools import partial
from typing import Any

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

from convnext.data.deep import DeepImage, to_bytes
from convnext.data.images import to_pixels
from convnext.data.transforms.preprocessing import to_normalised
from convnext.errors import UsageError
from convnext.recipe import Augment, Data


def train_transform(data: Data, augment: Augment, interpolation: str) -> Callable[[Image | DeepImage | Tensor], Tensor]:
    """A function from an opened image, or its uint8 (3, H, W) tensor, to an augmented float32 (3, image_size, image_size) tensor.

    Its randomness comes from the global generators of Python, NumPy and PyTorch: call it under `seeded`.
    The order, the settings and the draws are those of timm's `create_transform` as the paper's code calls it; so is the result,
    but for the rounding of `ResizedCrop`. An image of more than 8 bits keeps its levels, but for RandAugment and colour jitter.
    """
    steps: list[Any] = [ResizedCrop(data, augment, interpolation)]
    if augment.flip:
        steps.append(partial(_flip, probability=augment.flip))
    if augment.rand_augment:
        steps += [_to_image, _rand_augment(augment.rand_augment, data, interpolation)]
    elif augment.color_jitter:
        steps += [_to_image, v2.ColorJitter(*(augment.color_jitter,) * 3)]
    steps.append(to_normalised(data.mean, data.std))
    if augment.random_erasing:
        steps.append(RandomErasing(augment.random_erasing, mode="pixel", device="cpu"))
    return v2.Compose(steps)


class ResizedCrop:
    """timm's random crop, drawn as timm draws it, resized by PyTorch in a third of Pillow's time.

    From an opened image, or its uint8 (3, H, W) tensor, to a uint8 (3, image_size, image_size) tensor, or a float32 one from 0 to 255
    where it has more than 8 bits. PyTorch's 8-bit kernel is Pillow's algorithm, horizontal pass first; its weights have fewer bits,
    so 0.3% of the values are off by one level and one in a million by two. Pillow 13 runs the vertical pass first on some upright
    crops; where the first pass clips an overshoot, single values then differ more, as they do between Pillow 13 and the Pillow of
    the published runs.
    """

    def __init__(self, data: Data, augment: Augment, interpolation: str) -> None:
        self.crop = RandomResizedCropAndInterpolation(data.image_size, augment.crop_scale, augment.crop_aspect)
        self.range = data.range
        self.size = (data.image_size, data.image_size)
        self.how: dict[str, Any] = {"mode": "nearest-exact"} if interpolation == "nearest" else {"mode": interpolation, "antialias": True}

    def __call__(self, image: Image | DeepImage | Tensor) -> Tensor:
        pixels = to_pixels(image, self.range)
        top, left, height, width = self.crop.get_params(pixels, self.crop.scale, self.crop.ratio)
        # Of an image of a few pixels the drawn crop can be empty: then it is the nearest row or column.
        top, left = min(top, pixels.shape[1] - 1), min(left, pixels.shape[2] - 1)
        part = pixels[None, :, top : top + max(height, 1), left : left + max(width, 1)]
        return F.interpolate(part.contiguous(memory_format=torch.channels_last), self.size, **self.how)[0]


def _flip(pixels: Tensor, probability: float) -> Tensor:
    return pixels.flip(-1) if torch.rand(1) < probability else pixels  # the draw of torchvision's flip, which timm takes


def _to_image(pixels: Tensor) -> Image:
    return PIL.Image.fromarray(to_bytes(pixels).permute(1, 2, 0).numpy())


def batch_mixing(augment: Augment, label_smoothing: float, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup or CutMix of a whole batch, chosen evenly, or None where both are off.

    The function takes images (N, 3, H, W) and labels (N,), N even, and returns mixed images and smoothed soft targets
    (N, num_classes). Its randomness comes from NumPy's global generator.
    """
    if not (augment.mixup or augment.cutmix):
        return None
    mix = Mixup(augment.mixup, augment.cutmix, label_smoothing=label_smoothing, num_classes=num_classes)

    def apply(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # timm mixes in place and builds its targets on the labels' device.
        mixed: tuple[Tensor, Tensor] = mix(images.clone(memory_format=torch.preserve_format), labels)
        return mixed

    return apply


def _rand_augment(notation: str, data: Data, interpolation: str) -> Any:
    settings = {
        "translate_const": int(data.image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * x)) for x in data.mean),
        "interpolation": str_to_pil_interp(interpolation),
    }
    try:
        augment = rand_augment_transform(notation, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise UsageError(f"augment.rand_augment: {notation!r} is not in timm's notation, for instance rand-m9-mstd0.5-inc1") from error
    for op in augment.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return augment


def _posterize(image: Image, bits_to_keep: int, **_: Any) -> Image:
    # At its greatest strength the published augmentation keeps 0 bits, a black image; Pillow 13 refuses to do that.
    if bits_to_keep >= 8:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep else PIL.Image.new(image.mode, image.size)
