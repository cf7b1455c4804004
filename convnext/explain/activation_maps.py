"""Why a classifier says what it says: which parts of an image speak for a class.

Source: Selvaraju et al., *Grad-CAM*, ICCV 2017 (arXiv 1610.02391), equations 1 and 2.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from convnext.data.deep import DeepImage, shown
from convnext.errors import UsageError, nearest
from convnext.tasks.finite import require_finite

# Dark blue, through red, to yellow: rising in lightness, so that it reads in grey and without red-green vision (matplotlib's "plasma").
_COLOURS = ((13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))
_FEWEST = 4  # positions a side that say something of where
_LONGEST = 512  # pixels of a drawn map: it has some 7 x 7 positions
_STRONGEST = 0.85  # opacity where the map is highest
_SHOWN = 320  # pixels of the long side from which an image need not be enlarged to be looked at


def can_explain(predictor: Any) -> bool:
    """Whether `activation_map` works for it: classifiers in PyTorch that pool a map; a class token has gathered it by then."""
    model = predictor.model
    has_map = all(hasattr(model, name) for name in ("features", "forward_head", "strides"))  # exported networks have no head of its own
    return predictor.task == "classify" and has_map and not hasattr(model, "cls_token")


def activation_map(
    predictor: Any, image: Image.Image | DeepImage, name: str | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """What speaks for a class where, by Grad-CAM, float32 (height, width) in [0, 1].

    It is of the last map before pooling or, where that has fewer than 4 x 4 positions (small images), of the last that has them.

    Where the network did not look (what centre cropping cuts off) it is 0.

    Args:
        predictor: of a classifier.
        image: of `read_image`.
        name: of the class; by default the likeliest.
        size: width and height of the result, in the proportions of the image; by default the image's own.

    Raises UsageError for a class that it doesn't know and for networks that have no such map.
    """
    if not can_explain(predictor):
        raise UsageError("activation maps are for classifiers in PyTorch that pool a map of features")
    if name is not None and name not in predictor.classes:
        raise UsageError(f"no class is called {name!r}{nearest(name, predictor.classes)}")
    cam = _grad_cam(predictor, image, None if name is None else list(predictor.classes).index(name))
    columns, rows = size or image.size
    left, top, width, height = _seen((columns, rows), predictor.preprocessing)
    whole = np.zeros((rows, columns), np.float32)
    seen = Image.fromarray(cam).resize((width, height), Image.Resampling.BICUBIC)
    whole[top : top + height, left : left + width] = np.asarray(seen).clip(0, 1)
    return whole


def coloured(strength: np.ndarray) -> Image.Image:
    """A map in [0, 1] as an RGBA image to be laid over the one it is of, the more opaque the higher."""
    at = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(strength, at, column) for column in np.array(_COLOURS).T]
    return Image.fromarray(np.stack([*channels, 255 * _STRONGEST * strength], -1).round().astype(np.uint8), "RGBA")


def draw(predictor: Any, image: Image.Image | DeepImage, name: str | None = None) -> Image.Image:
    """`activation_map`, coloured, in the proportions of the image, at most 512 pixels a side."""
    factor = min(1, _LONGEST / max(image.size))
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return coloured(activation_map(predictor, image, name, size))


def laid_over(predictor: Any, image: Image.Image | DeepImage, name: str | None = None) -> Image.Image:
    """The image with its `activation_map` over it, from 320 to some 512 pixels a side: small ones are enlarged by a whole factor."""
    longest = max(image.size)
    factor = -(-_SHOWN // longest) if longest < _SHOWN else min(1, _LONGEST / longest)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    below = shown(image).convert("RGBA").resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
    return Image.alpha_composite(below, coloured(activation_map(predictor, image, name, size))).convert("RGB")


def _grad_cam(predictor: Any, image: Image.Image | DeepImage, label: int | None) -> np.ndarray:
    model = predictor.model
    x = predictor.preprocessing.transform()(image)[None].to(predictor.device)
    # Where the last map suffices, the gradient goes through the head alone.
    is_coarse = x.shape[-1] < _FEWEST * model.strides[-1]
    with torch.set_grad_enabled(is_coarse):
        is_timms = hasattr(model, "forward_intermediates")  # some have a last norm after `features`
        found = [model.forward_features(x)] if is_timms else model.features(x)
    with torch.enable_grad():
        maps = found[0] if len(found) == 1 else next((one for one in reversed(found) if min(one.shape[-2:]) >= _FEWEST), found[0])
        if not is_coarse:
            maps.requires_grad_()
        logits = require_finite(model.forward_head(found[-1])[0])
        score = logits.max() if label is None else logits[label]
        (gradient,) = torch.autograd.grad(score, maps)
    if is_timms and maps.shape[1] != model.channels[-1]:  # Swin's maps are (N, H, W, C)
        maps, gradient = maps.movedim(-1, 1), gradient.movedim(-1, 1)
    cam = (gradient.mean((-2, -1), keepdim=True) * maps).sum(1)[0].relu()
    return (cam / cam.max().clamp(min=1e-12)).detach().float().cpu().numpy()


def _seen(size: tuple[int, int], how: Any) -> tuple[int, int, int, int]:
    """Left, top, width and height of what the network sees of an image of that size."""
    width, height = size
    if how.warp:
        return 0, 0, width, height
    side = min(round(min(size) * how.image_size / int(how.image_size / how.crop_ratio)), width, height)
    return (width - side) // 2, (height - side) // 2, side, side
