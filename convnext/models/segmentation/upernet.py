"""UperNet, the segmenter of the paper's ADE20K experiments (section 3.4, Table 4).

Source: Xiao et al., *Unified Perceptual Parsing for Scene Understanding*, ECCV 2018 (arXiv 1807.10221), in the form of
mmsegmentation 1.2.2. Parameters are named as in the published weights.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.backbones.convnext import Dropper, LayerNorm2d
from convnext.models.segmentation.decay import is_output_norm, stage_group

IGNORED = 255  # in a mask: a pixel that is neither trained nor measured
AUXILIARY_WEIGHT = 0.4
_POOL_SIZES = (1, 2, 3, 6)


class UperNet(nn.Module):
    """A backbone, pyramid pooling of its last map, a feature pyramid, and a classifier of positions at a quarter of the size.

    A second, small classifier on the third map helps to train the backbone; nothing else uses it.

    Args:
        backbone: a network with `features(images)`, which gives maps of strides 4, 8, 16, 32, with their `.channels`, and with
            `drop_head()`. To be trained also `no_weight_decay()` and `layer_group(name)`.
        num_classes: classes of the masks.
        output_norm: put another LayerNorm on each of the maps, as the published segmenters with ConvNeXt do.
        channels: width of the pyramid.
        auxiliary_channels: width of the auxiliary head.
        dropout: rate at which whole channels are dropped before both classifiers.

    Raises UsageError if the backbone has no four maps.
    """

    def __init__(
        self,
        backbone: Any,
        num_classes: int,
        *,
        output_norm: bool,
        channels: int = 512,
        auxiliary_channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(backbone.channels) != 4:
            raise UsageError(f"UperNet needs a backbone with four maps, of strides 4 to 32; this one has {len(backbone.channels)}")
        backbone.drop_head()
        self.backbone, self.num_classes, self.output_norm = backbone, num_classes, output_norm
        if output_norm:
            for i, width in enumerate(backbone.channels):
                backbone.add_module(f"norm{i}", LayerNorm2d(width, eps=1e-6))
        self.decode_head = DecodeHead(backbone.channels, num_classes, channels, dropout)
        self.auxiliary_head = AuxiliaryHead(backbone.channels[2], num_classes, auxiliary_channels, dropout)

    def features(self, x: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to the four maps that the heads see, of strides 4, 8, 16, 32."""
        maps = self.backbone.features(x)
        if self.output_norm:
            maps = [self.backbone.get_submodule(f"norm{i}")(found) for i, found in enumerate(maps)]
        return maps

    def logits(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes, H // 4, W // 4), as they leave the network."""
        return self.decode_head(self.features(x))

    def logits_and_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `logits`, and the auxiliary head's logits (N, num_classes, H // 16, W // 16)."""
        maps = self.features(x)
        return self.decode_head(maps), self.auxiliary_head(maps[2])

    def forward(self, x: Tensor, auxiliary: bool = False) -> Any:
        """Images (N, 3, H, W) to logits (N, num_classes, H, W), enlarged bilinearly; with `auxiliary`, `logits_and_auxiliary`.

        Training asks for `auxiliary` through here, because wrappers such as DistributedDataParallel see only this method.
        Raises UsageError if the images are too small for the backbone.
        """
        return self.logits_and_auxiliary(x) if auxiliary else _resize(self.logits(x), x.shape[-2:])

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed: the backbone's, and all others of one dimension (norms, biases)."""
        names = {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}
        return names | {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    @cached_property
    def decay_groups(self) -> int:
        """The last group of the backbone in layer-wise decay: 6 in ConvNeXt-T, 12 in S to XL."""
        names = [name for name, _ in self.named_parameters() if name.startswith("backbone.") and not is_output_norm(name)]
        return max(self.backbone.layer_group(name.removeprefix("backbone.")) for name in names)

    def layer_group(self, name: str) -> int:
        """The group to which stage-wise learning rate decay counts a parameter; see `convnext.models.segmentation.decay`."""
        return stage_group(name, self.decay_groups)


class DecodeHead(nn.Module):
    """Pyramid pooling (Zhao et al., 2017) of the last map, then a feature pyramid down to the first map's size."""

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        top, pooled = widths[-1], len(_POOL_SIZES) * channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), _conv_norm_relu(top, channels, 1)) for size in _POOL_SIZES
        )
        self.bottleneck = _conv_norm_relu(top + pooled, channels, 3)
        self.lateral_convs = nn.ModuleList(_conv_norm_relu(width, channels, 1) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(_conv_norm_relu(channels, channels, 3) for _ in widths[:-1])
        self.fpn_bottleneck = _conv_norm_relu(len(widths) * channels, channels, 3)
        self.dropout = ChannelDropout(dropout)
        self.conv_seg = _classifier(channels, num_classes, published_width=512)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of falling size to logits (N, num_classes, h, w) of the first one's size."""
        levels = [conv(found) for conv, found in zip(self.lateral_convs, maps, strict=False)]
        levels.append(self._pool(maps[-1]))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + _resize(levels[i + 1], levels[i].shape[-2:])
        merged = [conv(level) for conv, level in zip(self.fpn_convs, levels, strict=False)] + levels[-1:]
        merged = [_resize(level, merged[0].shape[-2:]) for level in merged]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(merged, 1))))

    def _pool(self, x: Tensor) -> Tensor:
        if any(isinstance(module, nn.BatchNorm2d) and module.training for module in self.psp_modules.modules()) and len(x) == 1:
            raise UsageError(
                "UperNet can't train on one image at a time: its BatchNorm of the whole image's mean would see one value; "
                "give each device at least two images, or use synchronised BatchNorm on several devices"
            )
        pooled = [_resize(module(x), x.shape[-2:]) for module in self.psp_modules]
        return self.bottleneck(torch.cat([x, *pooled], 1))


class ChannelDropout(Dropper):
    """Dropout of whole channels (Tompson et al., 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        return x * self.factors(x, x.shape[1], 1, 1)


class AuxiliaryHead(nn.Module):
    """One convolution and a classifier on a single map."""

    def __init__(self, width: int, num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_conv_norm_relu(width, channels, 3)])
        self.dropout = ChannelDropout(dropout)
        self.conv_seg = _classifier(channels, num_classes, published_width=256)

    def forward(self, x: Tensor) -> Tensor:
        """A map (N, width, h, w) to logits (N, num_classes, h, w)."""
        return self.conv_seg(self.dropout(self.convs[0](x)))


def loss(model: Any, images: Tensor, masks: Tensor, ignore: int = IGNORED) -> Tensor:
    """The loss that the published segmenters were trained with: cross-entropy, and 0.4 times the auxiliary head's.

    Each head's is computed in float32 on logits enlarged to the masks, and is the mean over all pixels, the ignored ones included,
    which count as 0: mmsegmentation's `avg_non_ignore=False`, with which the published runs left it. So the loss of an image that is
    half ignored weighs half.

    Args:
        model: a UperNet, or a wrapper of one.
        images: (N, 3, H, W) images.
        masks: (N, H, W) classes, or `ignore`, of any integer type.

    Returns: a scalar.
    """
    logits, auxiliary = model(images, auxiliary=True)
    return _cross_entropy(logits, masks, ignore) + AUXILIARY_WEIGHT * _cross_entropy(auxiliary, masks, ignore)


def _cross_entropy(logits: Tensor, masks: Tensor, ignore: int) -> Tensor:
    enlarged = _resize(logits.float(), masks.shape[-2:])
    return F.cross_entropy(enlarged, masks.long(), ignore_index=ignore, reduction="sum") / masks.numel()


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    # In a graph for images of any size no one size may decide; to the same size it changes nothing.
    if not torch.compiler.is_exporting() and x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _conv_norm_relu(width: int, channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(width, channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True)))


def _classifier(width: int, num_classes: int, published_width: int) -> nn.Conv2d:
    # 0.01 at the published width. Under so small weights a narrow head learns nothing but how frequent the classes are for a thousand
    # steps; with these it finds them within a hundred (docs/segmentation.md).
    conv = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01 * published_width / width)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
