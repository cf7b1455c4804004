"""FCMAE: a ConvNeXt that learns without labels, from what is hidden of images.

Source: Woo et al., *ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders*, CVPR 2023 (arXiv 2301.00808), section 3.1,
and https://github.com/facebookresearch/ConvNeXt-V2. The published code convolves sparse maps. Its TRAINING.md shows the same with dense
maps, in which hidden positions are 0 before and after each depthwise convolution, and that is what is here.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext.errors import UsageError
from convnext.models.backbones.convnext import Block, ConvNeXt
from convnext.models.network import Network

WIDTH = 512  # of the decoder, which has one block
# Constants of SplitMix64 as signed numbers.
_GOLDEN, _FIRST, _SECOND = (number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class MaskedAutoencoder(Network):
    """A ConvNeXt as the encoder, and a decoder of one block, which predicts the pixels of hidden patches.

    A patch is as large as the stride of the encoder's last map, 32 pixels in the published sizes.

    Args:
        backbone: the encoder, a ConvNeXt; its head is dropped.
        num_classes: 0, because there are no labels.
        output_norm: whether other heads norm the maps. This one does not.
        mask_ratio: the fraction of the patches of an image that are hidden.

    Raises UsageError for another backbone, for classes, and for a ratio that is not between 0 and 1.
    """

    def __init__(self, backbone: ConvNeXt, num_classes: int, *, output_norm: bool, mask_ratio: float = 0.6) -> None:
        super().__init__()
        if num_classes:
            raise UsageError(f"a masked autoencoder has no output for {num_classes} classes: it is for task=pretrain, with num_classes=0")
        if not 0 < mask_ratio < 1:
            raise UsageError(f"mask_ratio must be a fraction between 0 and 1, not {mask_ratio}")
        backbone.drop_head()
        self.backbone, self.num_classes, self.mask_ratio = backbone, 0, mask_ratio
        self.patch_size = backbone.strides[-1]
        in_channels = next(backbone.parameters()).shape[1]
        self.proj = nn.Conv2d(backbone.channels[-1], WIDTH, 1)
        self.mask_token = nn.Parameter(torch.empty(1, WIDTH, 1, 1))
        self.decoder = Block(WIDTH, 7, 0.0, 0.0, grn=True)
        self.pred = nn.Conv2d(WIDTH, in_channels * self.patch_size**2, 1)
        # The published code draws the decoder's convolutions with a std of 1, which is trunc_normal_'s default; here it is ConvNeXt's 0.02.
        for module in (self.proj, *self.decoder.modules(), self.pred):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the last map (N, C, H / stride, W / stride) of what is visible of images (N, in_channels, H, W); 0 where hidden.

        `hidden` is (N, H / stride, W / stride), 1 for a hidden patch and 0 for a visible one.
        """
        visible = (1 - hidden).unsqueeze(1)
        x = x * _enlarged(visible, self.patch_size).to(x.dtype)  # a stem that overlaps sees nothing hidden either
        for downsample, stage, stride in zip(self.backbone.downsample_layers, self.backbone.stages, self.backbone.strides, strict=True):
            keep = _enlarged(visible, self.patch_size // stride)
            x = downsample(x)
            keep = keep.to(x.dtype)
            x = x * keep
            for block in cast("Iterable[Block]", stage.children()):
                if self.backbone.grad_checkpointing and torch.is_grad_enabled():
                    x = checkpoint(masked_block, block, x, keep, use_reentrant=False)
                else:
                    x = masked_block(block, x, keep)
        return x

    def reconstruct(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the predicted patches (N, patch_size² x in_channels, h, w) of images (N, in_channels, H, W).

        The values of a patch are in the order of `patches`, in units of the patch's own mean and standard deviation. `hidden` (N, h, w) is
        1 for a hidden patch and else 0.
        """
        y = self.proj(self.encode(x, hidden))
        gone = hidden.unsqueeze(1).to(y.dtype)
        y = self.decoder(y * (1 - gone) + self.mask_token.to(y.dtype) * gone)
        predicted: Tensor = self.pred(y)
        return predicted

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `reconstruct` of images (N, in_channels, H, W), and what was hidden of them, float32 (N, h, w).

        `seeds`, int64 (N,), decide what is hidden of each image; without them nothing is. Training calls this, because wrappers such as
        DistributedDataParallel see only this method. Raises UsageError for sides that no patches fill, and for too few patches.
        """
        height, width = self.grid(x)
        if seeds is None:
            hidden = torch.zeros(len(x), height, width, device=x.device)
        else:
            hidden = hidden_patches(seeds, height, width, self.mask_ratio)
        return self.reconstruct(x, hidden), hidden

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Return how many patches images (…, H, W) have below each other and side by side.

        Raises UsageError for sides that are no multiples of the patches'.
        """
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise UsageError(
                f"images of {height} x {width} pixels are not filled by patches of {self.patch_size}: "
                f"give data.image_size as a multiple of {self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the encoder's last map of images (N, in_channels, H, W), of which nothing is hidden."""
        return self.backbone.forward_features(x)

    def no_weight_decay(self) -> set[str]:
        """Return the names of all parameters of one dimension, and of those that the encoder names."""
        names = {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}
        return names | {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layer_group(self, name: str) -> int:
        """Return the encoder's group of a parameter for layer-wise decay; the decoder is in the last, which a classifier's head has."""
        return self.backbone.layer_group(name.removeprefix("backbone."))


def masked_block(block: Block, x: Tensor, keep: Tensor) -> Tensor:
    """Return the map of a block whose hidden positions count for nothing, neither in the convolution nor in GRN; they are 0 in it.

    Args:
        block: with its parameters.
        x: (N, C, H, W), 0 where hidden.
        keep: (N, 1, H, W), 0 where hidden and else 1.
    """
    y = block.norm(block.dwconv(x).permute(0, 2, 3, 1))
    y = block.activation(block.pwconv1(y))
    if block.grn is not None:
        y = block.grn(y * keep.permute(0, 2, 3, 1))
    y = block.pwconv2(y)
    if block.gamma is not None:
        y = block.gamma * y
    return x + block.drop_path(y.permute(0, 3, 1, 2)) * keep


def hidden_patches(seeds: Tensor, height: int, width: int, ratio: float) -> Tensor:
    """Return which patches are hidden, float32 (N, height, width): 1 where hidden, the fraction `ratio` of them, rounded up.

    Each image's are a function of its seed alone, on every device. Raises UsageError if that leaves no patch hidden, or none visible.

    Args:
        seeds: int64 (N,).
        height: patches below each other.
        width: patches side by side.
        ratio: of patches to hide.
    """
    count = height * width
    kept = int(count * (1 - ratio))
    if not 0 < kept < count:
        raise UsageError(
            f"an image of {height} x {width} patches has too few of them for mask_ratio={ratio}: "
            "give a larger data.image_size, or a smaller model.patch_size"
        )
    steps = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    scores = _scrambled(_scrambled(seeds[:, None] + _GOLDEN) + steps)
    visible = scores.argsort(dim=1, stable=True)[:, :kept]
    return torch.ones(len(seeds), count, device=seeds.device).scatter_(1, visible, 0.0).view(-1, height, width)


def _scrambled(x: Tensor) -> Tensor:
    """Return int64 numbers that look random, one for each number: the output function of SplitMix64 (Steele et al., 2014)."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # without the copies of the sign


def patches(images: Tensor, size: int) -> Tensor:
    """Return images (N, C, H, W) as patches (N, size² x C, H / size, W / size), whose values are in the order (row, column, channel)."""
    n, c, height, width = images.shape
    parts = images.reshape(n, c, height // size, size, width // size, size)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, size * size * c, height // size, width // size)


def images_of(parts: Tensor, size: int) -> Tensor:
    """Return the images (N, C, H, W) of patches, as `patches` gives them."""
    n, values, height, width = parts.shape
    c = values // size**2
    parts = parts.reshape(n, size, size, c, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c, height * size, width * size)


def _enlarged(grid: Tensor, factor: int) -> Tensor:
    return grid.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
