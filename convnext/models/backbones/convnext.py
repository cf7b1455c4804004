"""ConvNeXt, whole on one page. Source: Liu et al., *A ConvNet for the 2020s*, CVPR 2022 (arXiv 2201.03545), section 2.

Activations are (N, C, H, W) tensors that lie in memory as NHWC (channels-last) from the stem's norm on, so that a block's
depthwise convolution, LayerNorm and linear layers all read them as they are. Parameters are named as in the published code.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext import ops
from convnext.errors import UsageError
from convnext.models.backbones.dropping import DropPath, drop_path_rates
from convnext.models.backbones.untouched import remember, untouched, watched
from convnext.models.network import Backbone


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension, by the fast operator where there is one. It sums in float32 whatever the dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of an (N, C, H, W) map; its output lies in memory as NHWC."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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
    """Depthwise convolution, LayerNorm, a linear layer to four times the width, GELU, a linear layer back, layer scale."""

    def __init__(self, width: int, kernel_size: int, drop_path: float, layer_scale: float, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv(width, kernel_size)
        self.norm = LayerNorm(width, eps=norm_eps)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if not watched() and (parameters := self.fusable()) is not None and ops.takes_block(x, parameters) and ops.block_pays(x):
            return ops.block(x, parameters, self.norm.eps, self.drop_path.keep(x))
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # NHWC: a view, nothing moves
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))

    def fusable(self) -> ops.Parameters | None:
        """Return the parameters for the fused operator, or None if a submodule is hooked or replaced and must be called."""
        conv, norm, first, second = parts = self.dwconv, self.norm, self.pwconv1, self.pwconv2
        kinds = DepthwiseConv, LayerNorm, nn.Linear, nn.Linear, DropPath
        if not all(map(untouched, (*parts, self.drop_path), kinds)) or any(part.bias is None for part in parts) or not conv.keeps_size():
            return None
        assert conv.bias is not None
        mlp = first.weight, first.bias, second.weight, second.bias, self.gamma
        return ops.Parameters(conv.weight, conv.bias, norm.weight, norm.bias, *mlp)


class PooledClassifier(Backbone):
    """Base of this family's networks: initialisation, pooling, norm and head."""

    norm: nn.LayerNorm | nn.Identity
    head: nn.Linear | nn.Identity
    grad_checkpointing: bool
    min_size: int  # pixels: the smallest image side that leaves one position in the last map
    head_name = "head"

    def _build_head(self, width: int, num_classes: int, head_init_scale: float, norm_eps: float = 1e-6) -> None:
        self.num_features, self.num_classes = width, num_classes
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.apply(_init_weights)
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)

    def _run(self, blocks: nn.Module, x: Tensor) -> Tensor:
        recompute = self.grad_checkpointing and self.training
        if isinstance(blocks, nn.Sequential) and not recompute:
            return blocks(x)  # as a whole, so that hooks on a stage see it
        for block in blocks.children():
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if height < self.min_size or width < self.min_size:
            raise UsageError(
                f"an image of {height} x {width} pixels is too small for this network: "
                f"resize it to at least {self.min_size} x {self.min_size}, or build the network with a smaller patch_size"
            )

    def features(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map of images (N, in_channels, H, W), before pooling and norm."""
        return self.features(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (N, num_classes) of the last map (N, C, h, w), or, if `pre_logits`, the normalised mean (N, C)."""
        x = self.norm(x.mean((-2, -1)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W). Raises UsageError if they are below `min_size`."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh head for `num_classes` classes on the network; 0 leaves the pooled features as output."""
        self.set_num_classes(num_classes)
        like = next(self.parameters())
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(device=like.device, dtype=like.dtype).apply(_init_weights)

    def drop_head(self) -> None:
        """Remove what only `forward` needs, so that every parameter has a gradient under a detector or segmenter."""
        self.set_num_classes(0)
        del self.norm, self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory for about a third more time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of all parameters of one dimension: biases, norms and layer scales."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    def layer_group(self, name: str) -> int:
        """Return the parameter's group for layer-wise learning rate decay, counted from 0 at the stem."""
        raise NotImplementedError


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
        kernel_size: of the depthwise convolutions; odd.
        drop_path: stochastic depth of the last block; the others rise to it linearly from 0.
        layer_scale: initial value of the residual branches' scale; 0 for none.
        head_init_scale: factor on the head's initial weights (the paper fine-tunes with 0.001).
        norm_eps: epsilon of the norms; weights of other libraries may need another than the published code's.
        head_norm_eps: epsilon of the norm before the head, if it is another.
        grad_checkpointing: recompute blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        patch_size: int = 4,
        kernel_size: int = 7,
        drop_path: float = 0.0,
        layer_scale: float = 1e-6,
        head_init_scale: float = 1.0,
        norm_eps: float = 1e-6,
        head_norm_eps: float | None = None,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(widths) != 4:
            raise UsageError(f"depths and widths have one entry for each of the four stages, not {depths} and {widths}")
        check_arguments(kernel_size, drop_path)
        self.depths, self.channels = tuple(depths), tuple(widths)
        self.strides = tuple(patch_size * 2**i for i in range(4))
        self.min_size = patch_size * 8
        self.grad_checkpointing = grad_checkpointing

        stem = nn.Sequential(nn.Conv2d(in_channels, widths[0], patch_size, patch_size), LayerNorm2d(widths[0], eps=norm_eps))
        self.downsample_layers = nn.ModuleList([stem])
        for i in range(3):
            norm, conv = LayerNorm2d(widths[i], eps=norm_eps), Patchify(widths[i], widths[i + 1], 2)
            self.downsample_layers.append(nn.Sequential(norm, conv))

        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(*[Block(width, kernel_size, next(rates), layer_scale, norm_eps) for _ in range(depth)])
            for depth, width in zip(depths, widths, strict=True)
        )
        self._build_head(widths[-1], num_classes, head_init_scale, norm_eps if head_norm_eps is None else head_norm_eps)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the four stages' maps of images (N, in_channels, H, W): (N, channels[i], H // strides[i], W // strides[i])."""
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

    def stages_of_parameters(self) -> dict[str, int]:
        """Return the stage of each parameter, counted from 1, with the downsampling before it; 0 for the stem."""
        parts = [(name, name.split(".")) for name, _ in self.named_parameters()]
        stages = {name: int(number) + 1 for name, (part, number, *_) in parts if part in ("stages", "downsample_layers")}
        return stages | {name: 0 for name in stages if name.startswith("downsample_layers.0.")}


remember(DepthwiseConv, LayerNorm, LayerNorm2d, Patchify, nn.Conv2d, nn.Linear, DropPath, nn.Sequential, Block, ConvNeXt)


def _init_weights(module: nn.Module) -> None:
    # The published code's 0.02; the paper's text says 0.2, which no run of it used.
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_arguments(kernel_size: int, drop_path: float) -> None:
    """Raise UsageError for an even kernel or an invalid rate of stochastic depth."""
    if kernel_size % 2 == 0:
        raise UsageError(f"kernel_size must be odd so that the map keeps its size, not {kernel_size}")
    check_drop_path(drop_path)


def check_drop_path(drop_path: float) -> None:
    """Raise UsageError unless stochastic depth is a probability below 1."""
    if not 0.0 <= drop_path < 1.0:
        raise UsageError(f"drop_path must be a probability below 1, not {drop_path}")
