"""UperNet, the segmenter of the paper's ADE20K experiments (section 3.4, Table 4).

Source: Xiao et al., *Unified Perceptual Parsing for Scene Understanding*, ECCV 2018 (arXiv 1807.10221), in the form of
mmsegmentation 1.2.2. Parameters are named as in the published weights.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.backbones.dropping import Dropper
from convnext.models.backbones.norms import LayerNorm2d
from convnext.models.network import Backbone, Network
from convnext.models.segmentation.decay import is_output_norm, stage_group
from convnext.text import counted

IGNORED = 255  # in a mask: a pixel that is neither trained nor measured
AUXILIARY_WEIGHT = 0.4
_POOL_SIZES = (1, 2, 3, 6)

PixelLoss = Callable[[Tensor, Tensor], Tensor]  # of logits (N, C, H, W) and masks (N, H, W) int64: (N, H, W), 0 on ignored pixels


class UperNet(Network):
    """A backbone, pyramid pooling of its last map, a feature pyramid, and a classifier of positions at a quarter of the size.

    A second, small classifier on the third map helps to train the backbone. Inference does not use it.

    Args:
        backbone: a network with maps of strides 4, 8, 16, 32; its head is dropped.
        num_classes: classes of the masks.
        output_norm: put another LayerNorm on each of the maps, as the published segmenters with ConvNeXt do.
        channels: width of the pyramid.
        auxiliary_channels: width of the auxiliary head.
        dropout: rate at which whole channels are dropped before both classifiers.

    Raises UsageError if the backbone does not have four maps.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        output_norm: bool,
        channels: int = 512,
        auxiliary_channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(backbone.channels) != 4:
            count = counted(len(backbone.channels), "map")
            raise UsageError(f"UperNet needs a backbone with four maps, of strides 4 to 32; this one has {count}")
        backbone.drop_head()
        self.backbone, self.num_classes, self.output_norm = backbone, num_classes, output_norm
        if output_norm:
            for i, width in enumerate(backbone.channels):
                backbone.add_module(f"norm{i}", LayerNorm2d(width, eps=1e-6))
        self.decode_head = DecodeHead(backbone.channels, num_classes, channels, dropout)
        self.auxiliary_head = AuxiliaryHead(backbone.channels[2], num_classes, auxiliary_channels, dropout)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the four maps of images (N, 3, H, W) for the heads, of strides 4, 8, 16, 32."""
        maps = self.backbone.features(x)
        if self.output_norm:
            maps = [self.backbone.get_submodule(f"norm{i}")(found) for i, found in enumerate(maps)]
        return maps

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes, H // 4, W // 4) of images (N, 3, H, W), not enlarged."""
        return self.decode_head(self.features(x))

    def logits_and_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `logits`, and the auxiliary head's logits (N, num_classes, H // 16, W // 16)."""
        maps = self.features(x)
        return self.decode_head(maps), self.auxiliary_head(maps[2])

    def forward(self, x: Tensor, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits (N, num_classes, H, W) of images (N, 3, H, W), enlarged bilinearly; with `auxiliary`, `logits_and_auxiliary`.

        Training calls this with `auxiliary`, because wrappers such as DistributedDataParallel see only this method.
        Raises UsageError if the images are too small for the backbone.
        """
        return self.logits_and_auxiliary(x) if auxiliary else _resize(self.logits(x), x.shape[-2:])

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that the backbone names, and of all others of one dimension (norms, biases)."""
        names = {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}
        return names | {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    @cached_property
    def decay_groups(self) -> int:
        """The last group of the backbone in layer-wise decay: 6 in ConvNeXt-T, 12 in S to XL."""
        names = [name for name, _ in self.named_parameters() if name.startswith("backbone.") and not is_output_norm(name)]
        return max(self.backbone.layer_group(name.removeprefix("backbone.")) for name in names)

    def layer_group(self, name: str) -> int:
        """Return the parameter's group for stage-wise learning rate decay; see `convnext.models.segmentation.decay`."""
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
        """Return the logits (N, num_classes, h, w), of the first map's size, of maps from fine to coarse."""
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
                "UperNet can't train on one image at a time, because the BatchNorm of the whole image's mean would see one value: "
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
        """Return the logits (N, num_classes, h, w) of a map (N, width, h, w)."""
        return self.conv_seg(self.dropout(self.convs[0](x)))


def loss(model: nn.Module, images: Tensor, masks: Tensor, ignore: int = IGNORED) -> Tensor:
    """Return the loss of the published segmenters: cross-entropy, and 0.4 times the auxiliary head's.

    Each head's is computed in float32 on logits enlarged to the masks. It is the mean over all pixels; ignored ones count as 0, as in the
    published runs (mmsegmentation's `avg_non_ignore=False`). So an image with half of its pixels ignored has half the weight.

    Args:
        model: a UperNet, or a wrapper of one.
        images: (N, 3, H, W) images.
        masks: (N, H, W) classes, or `ignore`, of any integer type.

    Returns: a scalar.
    """
    parts = losses(model, images, masks, ignore)
    return parts["decode"] + parts["auxiliary"]


def losses(
    model: nn.Module, images: Tensor, masks: Tensor, ignore: int = IGNORED, pixel_loss: PixelLoss | None = None, dice: float = 0.0
) -> dict[str, Tensor]:
    """Return the parts of `loss` by the names of their heads: "decode", and "auxiliary" with its weight of 0.4, if the network has one.

    Args:
        model, images, masks, ignore: as for `loss`.
        pixel_loss: in place of cross-entropy, of each pixel.
        dice: weight of the part "dice", `dice_loss` of the decode head; 0 for none.
    """
    logits, auxiliary = model(images, auxiliary=True)
    parts = {"decode": _mean_loss(logits, masks, ignore, pixel_loss)}
    if auxiliary is not None:  # a head from outside may have none
        parts["auxiliary"] = AUXILIARY_WEIGHT * _mean_loss(auxiliary, masks, ignore, pixel_loss)
    return parts if not dice else parts | {"dice": dice * dice_loss(_resize(logits.float(), masks.shape[-2:]), masks, ignore)}


def _mean_loss(logits: Tensor, masks: Tensor, ignore: int, pixel_loss: PixelLoss | None) -> Tensor:
    enlarged = _resize(logits.float(), masks.shape[-2:])
    if pixel_loss is not None:
        return pixel_loss(enlarged, masks.long()).sum() / masks.numel()
    return F.cross_entropy(enlarged, masks.long(), ignore_index=ignore, reduction="sum") / masks.numel()


def dice_loss(logits: Tensor, masks: Tensor, ignore: int = IGNORED) -> Tensor:
    """Return 1 minus the soft Dice coefficient of a batch, the mean over the classes that its masks show; 0 if they show none.

    The coefficient of a class is 2 sum(p y) / (sum(p) + sum(y)) over all pixels of the batch that are not ignored (Milletari et al.,
    *V-Net*, 2016, without the squares), p the softmax of the logits (N, C, H, W) and y whether a pixel of `masks` (N, H, W) is of it.
    """
    known = masks != ignore
    probabilities = logits.softmax(1) * known[:, None]
    truth = F.one_hot(torch.where(known, masks, 0).long(), logits.shape[1]).permute(0, 3, 1, 2) * known[:, None]
    both, each = (probabilities * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))
    coefficients = 2 * both / (probabilities.sum((0, 2, 3)) + each).clamp_min(1e-6)
    shown = each > 0
    return ((1 - coefficients) * shown).sum() / shown.sum().clamp_min(1)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    # In a graph for images of any size, the branch must not depend on one size. Resizing to the same size changes nothing.
    if not torch.compiler.is_exporting() and x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _conv_norm_relu(width: int, channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(width, channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True)))


def _classifier(width: int, num_classes: int, published_width: int) -> nn.Conv2d:
    # 0.01 at the published width. With weights this small a narrow head learns only the class frequencies for a thousand steps; with these
    # it finds the classes within a hundred (docs/how-to/segmentation.md).
    conv = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01 * published_width / width)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
