"""Training augmentation: timm's transforms, which are the published ones."""

from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
from PIL import ImageOps
from PIL.Image import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import v2

from convnext.data.preprocessing import to_normalised
from convnext.errors import UsageError
from convnext.recipe import Augment, Data


def train_transform(data: Data, augment: Augment, interpolation: str) -> Callable[[Image], Tensor]:
    """A function from an RGB picture to an augmented float32 (3, image_size, image_size) tensor.

    Its randomness comes from the global generators of Python, NumPy and PyTorch: call it under `seeded`.
    The order and the settings are those of timm's `create_transform` as the paper's code calls it.
    """
    steps: list[Any] = [RandomResizedCropAndInterpolation(data.image_size, augment.crop_scale, augment.crop_aspect, interpolation)]
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.rand_augment:
        steps.append(_rand_augment(augment.rand_augment, data, interpolation))
    elif augment.color_jitter:
        steps.append(v2.ColorJitter(*(augment.color_jitter,) * 3))
    steps += to_normalised(data.mean, data.std)
    if augment.random_erasing:
        steps.append(RandomErasing(augment.random_erasing, mode="pixel", device="cpu"))
    return v2.Compose(steps)


def batch_mixing(augment: Augment, label_smoothing: float, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup or CutMix of a whole batch, chosen evenly, or None where both are off.

    The function takes pictures (N, 3, H, W) and labels (N,), N even, and returns mixed pictures and smoothed soft targets
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


def _posterize(picture: Image, bits_to_keep: int, **_: Any) -> Image:
    # At its greatest strength the published augmentation keeps 0 bits, a black picture; Pillow 13 refuses to do that.
    if bits_to_keep >= 8:
        return picture
    return ImageOps.posterize(picture, bits_to_keep) if bits_to_keep else PIL.Image.new(picture.mode, picture.size)
