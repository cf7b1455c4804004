"""The stems of ConvNeXt's family: from the image to a map of a quarter of its size (of 1 / patch_size with patches)."""

from torch import nn

from convnext.errors import UsageError, nearest
from convnext.models.backbones.activations import Activation
from convnext.models.backbones.norms import norm_of

STEMS = ("patch", "overlap", "overlap_tiered", "overlap_act")
_STRIDE = 4  # of the overlapped stems


def stem_of(
    kind: str,
    in_channels: int,
    width: int,
    patch_size: int = 4,
    *,
    norm_layer: str = "layernorm",
    eps: float = 1e-6,
    activation: str = "gelu",
) -> nn.Sequential:
    """Return a stem, a norm last.

    "patch" is one convolution whose kernel is its stride, as published. The others are timm's two overlapping 3 x 3 convolutions of
    stride 2, whose maps have sides rounded up: the first has half the width in "overlap_tiered", and an activation behind it in
    "overlap_act".

    Raises UsageError for an unknown kind, and for an overlapped stem with another patch_size than 4.
    """
    if kind not in STEMS:
        raise UsageError(f"unknown stem {kind!r}{nearest(kind, STEMS)}; it can be {', '.join(STEMS)}")
    norm = norm_of(norm_layer, width, eps, maps=True)
    if kind == "patch":
        return nn.Sequential(nn.Conv2d(in_channels, width, patch_size, patch_size), norm)
    if patch_size != _STRIDE:
        raise UsageError(f"the stem {kind!r} has stride {_STRIDE}: patch_size={patch_size} needs the stem 'patch'")
    middle = _tiered(width) if kind == "overlap_tiered" else width
    first, second = nn.Conv2d(in_channels, middle, 3, 2, 1), nn.Conv2d(middle, width, 3, 2, 1)
    return nn.Sequential(first, Activation(activation), second, norm) if kind == "overlap_act" else nn.Sequential(first, second, norm)


def _tiered(width: int) -> int:
    # Half the width as a multiple of 8, not below nine tenths of it: timm's `make_divisible`.
    half = width // 2
    rounded = max(8, int(half + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * half else rounded
