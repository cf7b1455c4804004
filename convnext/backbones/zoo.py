"""Names of backbones: what each is built from and which published weights exist for it.

Adding a backbone is one entry in `BACKBONES`. It must offer `forward(x) -> logits`, `features(x) -> maps`, `.channels`, `.strides`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from convnext.backbones.convnext import ConvNeXt, ConvNeXtIsotropic
from convnext.backbones.roadmap import roadmap, step_names


@dataclass(frozen=True)
class Backbone:
    """One named network: its constructor, the arguments that make it that network, and weights by tag."""

    build: Callable[..., nn.Module]
    arguments: dict[str, Any]
    weights: dict[str, str] = field(default_factory=dict)  # tag → hf://owner/name or https://…


_OFFICIAL = "https://dl.fbaipublicfiles.com/convnext"
_IN1K = ("fb_in1k",)
_IN22K = ("fb_in22k", "fb_in22k_ft_in1k", "fb_in22k_ft_in1k_384")


def _convnext(size: str, depths: tuple[int, ...], widths: tuple[int, ...], *tags: str, **more: str) -> Backbone:
    on_hub = {tag: f"hf://timm/convnext_{size}.{tag}" for tag in tags}
    return Backbone(ConvNeXt, {"depths": depths, "widths": widths}, on_hub | more)


def _isotropic(size: str, depth: int, width: int, layer_scale: float) -> Backbone:
    # Layer scale is off in the published small and base (recipes.md), so off in their weights too.
    arguments = {"depth": depth, "width": width, "layer_scale": layer_scale}
    return Backbone(ConvNeXtIsotropic, arguments, {"fb_in1k": f"{_OFFICIAL}/convnext_iso_{size}_1k_224_ema.pth"})


BACKBONES: dict[str, Backbone] = {
    # Below tiny: timm's sizes and weights; the paper's family begins with tiny.
    "convnext_atto": _convnext("atto", (2, 2, 6, 2), (40, 80, 160, 320), "d2_in1k"),
    "convnext_femto": _convnext("femto", (2, 2, 6, 2), (48, 96, 192, 384), "d1_in1k"),
    "convnext_pico": _convnext("pico", (2, 2, 6, 2), (64, 128, 256, 512), "d1_in1k"),
    "convnext_nano": _convnext("nano", (2, 2, 8, 2), (80, 160, 320, 640), "d1h_in1k"),
    "convnext_tiny": _convnext("tiny", (3, 3, 9, 3), (96, 192, 384, 768), *_IN1K, *_IN22K),
    "convnext_small": _convnext("small", (3, 3, 27, 3), (96, 192, 384, 768), *_IN1K, *_IN22K),
    "convnext_base": _convnext(
        "base", (3, 3, 27, 3), (128, 256, 512, 1024), *_IN1K, *_IN22K, fb_in1k_384=f"{_OFFICIAL}/convnext_base_1k_384.pth"
    ),
    "convnext_large": _convnext(
        "large", (3, 3, 27, 3), (192, 384, 768, 1536), *_IN1K, *_IN22K, fb_in1k_384=f"{_OFFICIAL}/convnext_large_1k_384.pth"
    ),
    "convnext_xlarge": _convnext("xlarge", (3, 3, 27, 3), (256, 512, 1024, 2048), *_IN22K),
    "convnext_isotropic_small": _isotropic("small", 18, 384, 0.0),
    "convnext_isotropic_base": _isotropic("base", 18, 768, 0.0),
    "convnext_isotropic_large": _isotropic("large", 36, 1024, 1e-6),
}

for _regime in ("t", "b"):
    for _step, _name in enumerate(step_names(_regime)):
        BACKBONES[_name] = Backbone(roadmap, {"step": _step, "regime": _regime})
