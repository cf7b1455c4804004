"""Where in an image a classifier finds evidence for a class.

Source: Selvaraju et al., *Grad-CAM*, ICCV 2017 (arXiv 1610.02391), equations 1 and 2.
"""

from typing import Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage, shown
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.data.transforms.resizing import fitting_size
from convnext.errors import UsageError, nearest
from convnext.inference.predictor import Predictor
from convnext.tasks.base import Prediction
from convnext.tasks.shared import require_finite

# Dark blue, through red, to yellow: rising in lightness, so that it reads in grey and without red-green vision (matplotlib's "plasma").
_COLOURS = ((13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))
_MIN_POSITIONS = 4  # a side: a coarser map says nothing about where
_MAX_DRAWN = 512  # pixels of a drawn map, which has some 7 x 7 positions
_MAX_OPACITY = 0.85  # where the map is highest
_MIN_SHOWN = 320  # pixels of the long side: smaller images are enlarged


class Mapped(Protocol):
    """A network that classifies by a pooled map."""

    strides: tuple[int, ...]

    def features(self, x: Tensor) -> list[Tensor]: ...
    def forward_features(self, x: Tensor) -> Tensor: ...  # the last map, after a last norm
    def forward_head(self, x: Tensor) -> Tensor: ...  # from that map to logits


def can_explain(predictor: Predictor[Prediction]) -> bool:
    """Return whether `activation_map` works for it: the network is in PyTorch, pools a map, and classifies what it pooled.

    An exported network has no such parts, and a network with a class token does not pool.
    """
    model = predictor.model
    return all(hasattr(model, name) for name in ("features", "forward_head", "strides")) and not hasattr(model, "cls_token")


def activation_map(
    predictor: Predictor[Prediction], image: Image.Image | DeepImage, name: str | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the evidence for a class at each pixel, by Grad-CAM, float32 (height, width) in [0, 1].

    It is computed at the last map before pooling or, if that has fewer than 4 x 4 positions (small images), at the last that has as many.
    It is 0 in the parts of the image that centre cropping cuts off.

    Args:
        predictor: of a classifier.
        image: from `read_image`.
        name: the class; by default the likeliest.
        size: width and height of the result, in the proportions of the image; by default the image's own.

    Raises UsageError for an unknown class and for a network without such a map.
    """
    if not can_explain(predictor):
        raise UsageError("activation maps are for classifiers in PyTorch that pool a map of features")
    if name is not None and name not in predictor.classes:
        raise UsageError(f"unknown class {name!r}{nearest(name, predictor.classes)}")
    cam = _grad_cam(predictor, image, None if name is None else list(predictor.classes).index(name))
    columns, rows = size or image.size
    left, top, width, height = _seen((columns, rows), predictor.preprocessing)
    whole = np.zeros((rows, columns), np.float32)
    seen = np.asarray(Image.fromarray(cam).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    # Of a letterboxed image the network sees more than there is: negative edges cut the ground off.
    whole[max(top, 0) : top + height, max(left, 0) : left + width] = seen[max(-top, 0) :, max(-left, 0) :][:rows, :columns]
    return whole


def coloured(strength: np.ndarray) -> Image.Image:
    """Return a map in [0, 1] as an RGBA image to lay over its image: the higher, the more opaque."""
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(strength, stops, column) for column in np.array(_COLOURS).T]
    return Image.fromarray(np.stack([*channels, 255 * _MAX_OPACITY * strength], -1).round().astype(np.uint8), "RGBA")


def draw(predictor: Predictor[Prediction], image: Image.Image | DeepImage, name: str | None = None) -> Image.Image:
    """Return the `activation_map` in colour, in the proportions of the image, at most 512 pixels a side."""
    factor = min(1, _MAX_DRAWN / max(image.size))
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return coloured(activation_map(predictor, image, name, size))


def laid_over(predictor: Predictor[Prediction], image: Image.Image | DeepImage, name: str | None = None) -> Image.Image:
    """Return the image under its `activation_map`, from 320 to some 512 pixels a side: small ones are enlarged by a whole factor."""
    longest = max(image.size)
    factor = -(-_MIN_SHOWN // longest) if longest < _MIN_SHOWN else min(1, _MAX_DRAWN / longest)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    below = shown(image).convert("RGBA").resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
    return Image.alpha_composite(below, coloured(activation_map(predictor, image, name, size))).convert("RGB")


def _grad_cam(predictor: Predictor[Prediction], image: Image.Image | DeepImage, label: int | None) -> np.ndarray:
    model = cast(Mapped, predictor.model)
    x = predictor.preprocessing.transform()(image)[None].to(predictor.device)
    # If the last map is fine enough, the gradient goes through the head alone.
    is_coarse = x.shape[-1] < _MIN_POSITIONS * model.strides[-1]
    with torch.set_grad_enabled(is_coarse):
        is_timms = hasattr(model, "forward_intermediates")  # some of timm's have a last norm after `features`
        found = [model.forward_features(x)] if is_timms else model.features(x)
    with torch.enable_grad():
        maps = found[0] if len(found) == 1 else next((one for one in reversed(found) if min(one.shape[-2:]) >= _MIN_POSITIONS), found[0])
        if not is_coarse:
            maps.requires_grad_()
        logits = require_finite(model.forward_head(found[-1])[0])
        score = logits.max() if label is None else logits[label]
        (gradient,) = torch.autograd.grad(score, maps)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":  # timm's Swin; EfficientNet's last map has more channels than `channels` says
        maps, gradient = maps.movedim(-1, 1), gradient.movedim(-1, 1)
    cam = (gradient.mean((-2, -1), keepdim=True) * maps).sum(1)[0].relu()
    return (cam / cam.max().clamp(min=1e-12)).detach().float().cpu().numpy()


def _seen(size: tuple[int, int], how: Preprocessing) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the part that the network sees of an image of that size."""
    assert isinstance(how, ClassifyPreprocessing)
    width, height = size
    if how.warp:
        return 0, 0, width, height
    goal_height, goal_width = how.size
    if how.letterbox:
        inner_height, inner_width = fitting_size(height, width, how.size)
        seen_width, seen_height = round(width * goal_width / inner_width), round(height * goal_height / inner_height)
        left, top = (goal_width - inner_width) // 2 * width // inner_width, (goal_height - inner_height) // 2 * height // inner_height
        return -left, -top, max(seen_width, width + left), max(seen_height, height + top)
    # The image is resized until it covers `image_size / crop_ratio`, of which the centre is seen.
    scale = max(int(goal_height / how.crop_ratio) / height, int(goal_width / how.crop_ratio) / width)
    seen_width, seen_height = min(round(goal_width / scale), width), min(round(goal_height / scale), height)
    return (width - seen_width) // 2, (height - seen_height) // 2, seen_width, seen_height
