"""ConvNeXt and its family, whole on one page. Source: Liu et al., *A ConvNet for the 2020s*, CVPR 2022 (arXiv 2201.03545), section 2.

What members of the family have in place of a part is beside it: `norms.py` (with GRN, of ConvNeXt V2), `activations.py`, `stems.py`.
Pooling and heads are in `pooled.py`.

Activations are (N, C, H, W) tensors that lie in memory as NHWC (channels-last) from the stem's norm on, so that a block's
depthwise convolution, LayerNorm and linear layers all read them as they are. Parameters are named as in the published code.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from convnext import ops
from convnext.errors import UsageError
from convnext.models.backbones.activations import activation_of
from convnext.models.backbones.dropping import DropPath, drop_path_rates
from convnext.models.backbones.norms import GlobalResponseNorm, LayerNorm, LayerNorm2d, norm_of
from convnext.models.backbones.pooled import PooledClassifier
from convnext.models.backbones.stems import stem_of
from convnext.models.backbones.untouched import remember, untouched, watched


class DepthwiseConv(nn.Conv2d):
    """A convolution of each channel by a kernel of its own; stride 1 and padding keep the map's size. Uses the fast operator if it can."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__(width, width, kernel_size, padding=kernel_size // 2, groups=width)

    def keeps_size(self) -> bool:
        """Return whether it still is as it was made: some users set another stride, dilation or padding afterwards."""
        side, other = self.kernel_size
        usual = self.stride == self.dilation == (1, 1) and self.padding == (side // 2, other // 2) and self.padding_mode == "zeros"
        return usual and side == other and self.groups == self.in_channels == self.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return ops.depthwise_conv(x, self.weight, self.bias) if self.keeps_size() else super().forward(x)


class Patchify(nn.Conv2d):
    """A convolution whose kernel is as large as its stride. Uses the fast operator if it can."""

    def __init__(self, width: int, outputs: int, patch_size: int) -> None:
        super().__init__(width, outputs, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return ops.patchify(x, self.weight, self.bias)


class Block(nn.Module):
    """Depthwise convolution, LayerNorm, a linear layer to four times the width, GELU, a linear layer back, layer scale.

    ConvNeXt V2 has GRN behind the activation. Other members of the family have another norm or activation, which no fast operator computes.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int,
        drop_path: float,
        layer_scale: float,
        norm_eps: float = 1e-6,
        *,
        norm_layer: str = "layernorm",
        activation: str = "gelu",
        grn: bool = False,
    ) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv(width, kernel_size)
        # Another norm has no bias. Only a LayerNorm's is read, see `fusable`.
        self.norm = cast(LayerNorm, norm_of(norm_layer, width, norm_eps, maps=False))
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.activation, self.activation_name = activation_of(activation), activation
        self.grn = GlobalResponseNorm(4 * width) if grn else None
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if not watched() and (parameters := self.fusable()) is not None:
            grn = None if self.grn is None else self.grn.operand()
            if ops.takes_block(x, parameters, grn) and ops.block_pays(x):
                return ops.block(x, parameters, self.norm.eps, self.drop_path.keep(x), grn)
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # NHWC: a view, nothing moves
        y = self.activation(self.pwconv1(y))
        if self.grn is not None:
            y = self.grn(y)
        y = self.pwconv2(y)
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))

    @property
    def is_published(self) -> bool:
        """Whether it computes the function of the block of ConvNeXt or ConvNeXt V2, which the fast operators have."""
        return self.activation_name == "gelu" and isinstance(self.norm, nn.LayerNorm)

    def fusable(self) -> ops.Parameters | None:
        """Return the parameters for the fused operator, or None if a submodule is hooked or replaced and must be called."""
        conv, norm, first, second = parts = self.dwconv, self.norm, self.pwconv1, self.pwconv2
        kinds = DepthwiseConv, LayerNorm, nn.Linear, nn.Linear, DropPath
        if not self.is_published or not all(map(untouched, (*parts, self.drop_path), kinds)):
            return None
        if self.grn is not None and not untouched(self.grn, GlobalResponseNorm):
            return None
        if any(part.bias is None for part in parts) or not conv.keeps_size():
            return None
        assert conv.bias is not None
        mlp = first.weight, first.bias, second.weight, second.bias, self.gamma
        return ops.Parameters(conv.weight, conv.bias, norm.weight, norm.bias, *mlp)


class ConvNeXt(PooledClassifier):
    """The four-stage network.

    An image side that is not a multiple of a stage's stride loses its last rows or columns there, as in every published
    implementation: 33 pixels give the same maps as the first 32 at strides 4 to 32.

    Args:
        depths: blocks in each of the four stages.
        widths: channels of each of the four stages.
        in_channels: channels of the image.
        num_classes: outputs of the head; 0 for none.
        patch_size: kernel and stride of the stem; the maps have strides patch_size x (1, 2, 4, 8).
        kernel_size: of the depthwise convolutions; odd. One number, or one for each stage.
        drop_path: stochastic depth of the last block; the others rise to it linearly from 0.
        layer_scale: initial value of the residual branches' scale; 0 for none.
        head_init_scale: factor on the head's initial weights (the paper fine-tunes with 0.001).
        norm_eps: epsilon of the norms; weights of other libraries may need another than the published code's.
        head_norm_eps: epsilon of the norm before the head, if it is another.
        grad_checkpointing: recompute blocks in the backward pass to save memory.
        grn: Global Response Normalization in the blocks, as ConvNeXt V2 has it, with layer_scale 0.
        norm_layer: "layernorm", "rmsnorm" or "simplenorm", see `norms.py`.
        activation: of the blocks, one of `activations.ACTIVATIONS`.
        stem: "patch" as published, "overlap", "overlap_tiered" or "overlap_act", see `stems.py`.
        head_norm_first: norm the last map, and then pool.
        head_hidden_size: hidden values of a head of two layers with GELU between; 0 for the published head of one.

    Raises UsageError for values that do not go together.
    """

    block: type[Block] = Block  # a subclass may have a block of its own: docs/extend/network.md

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        patch_size: int = 4,
        kernel_size: int | Sequence[int] = 7,
        drop_path: float = 0.0,
        layer_scale: float = 1e-6,
        head_init_scale: float = 1.0,
        norm_eps: float = 1e-6,
        head_norm_eps: float | None = None,
        grad_checkpointing: bool = False,
        grn: bool = False,
        norm_layer: str = "layernorm",
        activation: str = "gelu",
        stem: str = "patch",
        head_norm_first: bool = False,
        head_hidden_size: int = 0,
    ) -> None:
        super().__init__()
        kernels = (kernel_size,) * 4 if isinstance(kernel_size, int) else tuple(kernel_size)
        if not len(depths) == len(widths) == len(kernels) == 4:
            raise UsageError(f"depths, widths and kernels have one entry for each of the four stages, not {depths}, {widths}, {kernels}")
        for kernel in kernels:
            check_arguments(kernel, drop_path)
        self.depths, self.channels = tuple(depths), tuple(widths)
        self.strides = tuple(patch_size * 2**i for i in range(4))
        self.min_size = patch_size * 8
        self.grad_checkpointing = grad_checkpointing

        first = stem_of(stem, in_channels, widths[0], patch_size, norm_layer=norm_layer, eps=norm_eps, activation=activation)
        self.downsample_layers = nn.ModuleList([first])
        for i in range(3):
            norm, conv = norm_of(norm_layer, widths[i], norm_eps, maps=True), Patchify(widths[i], widths[i + 1], 2)
            self.downsample_layers.append(nn.Sequential(norm, conv))

        rates = iter(drop_path_rates(drop_path, sum(depths)))
        same = partial(self.block, layer_scale=layer_scale, norm_eps=norm_eps, norm_layer=norm_layer, activation=activation, grn=grn)
        self.stages = nn.ModuleList(
            nn.Sequential(*[same(width, kernel, next(rates)) for _ in range(depth)])
            for depth, width, kernel in zip(depths, widths, kernels, strict=True)
        )
        last_eps = norm_eps if head_norm_eps is None else head_norm_eps
        self._build_head(widths[-1], num_classes, head_init_scale, last_eps, norm_layer, head_norm_first, head_hidden_size)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the four stages' maps of images (N, in_channels, H, W): (N, channels[i], H // strides[i], W // strides[i]).

        An overlapped stem rounds a quarter of a side up.
        """
        self._check_size(x)
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = self._run(stage, downsample(x))
            maps.append(x)
        return maps

    def layer_group(self, name: str) -> int:
        """Return the published groups: three blocks of the third stage make one; T has 8 groups (0 to 7), the larger networks 14."""
        last = 3 + -(-self.depths[2] // 3)
        part, *numbers = name.split(".")
        if part == "downsample_layers":
            return (0, 2, 3, last)[int(numbers[0])]
        if part == "stages":
            stage, block = int(numbers[0]), int(numbers[1])
            return (1, 2, 3 + block // 3, last)[stage]
        return last + 1

    def block_group(self, name: str) -> int:
        """Return the groups of one block each, as ConvNeXt V2's code has them under the name "single".

        They count from 1, for the stem and the first block, to the number of blocks. The last norm and the head are one higher. A
        downsampling layer is in the group of the block behind it.
        """
        part, *numbers = name.split(".")
        if part not in ("downsample_layers", "stages"):
            return sum(self.depths) + 1
        before = sum(self.depths[: int(numbers[0])])
        return before + 1 + (int(numbers[1]) if part == "stages" else 0)

    def stages_of_parameters(self) -> dict[str, int]:
        """Return the stage of each parameter, counted from 1, with the downsampling before it; 0 for the stem."""
        parts = [(name, name.split(".")) for name, _ in self.named_parameters()]
        stages = {name: int(number) + 1 for name, (part, number, *_) in parts if part in ("stages", "downsample_layers")}
        return stages | {name: 0 for name in stages if name.startswith("downsample_layers.0.")}


remember(DepthwiseConv, LayerNorm, LayerNorm2d, GlobalResponseNorm, Patchify, nn.Conv2d, nn.Linear)
remember(DropPath, nn.Sequential, Block, ConvNeXt)


def check_arguments(kernel_size: int, drop_path: float) -> None:
    """Raise UsageError for an even kernel or an invalid rate of stochastic depth."""
    if kernel_size % 2 == 0:
        raise UsageError(f"kernel_size must be odd so that the map keeps its size, not {kernel_size}")
    check_drop_path(drop_path)


def check_drop_path(drop_path: float) -> None:
    """Raise UsageError unless stochastic depth is a probability below 1."""
    if not 0.0 <= drop_path < 1.0:
        raise UsageError(f"drop_path must be a probability below 1, not {drop_path}")
