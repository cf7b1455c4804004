"""The norms of ConvNeXt's family. Each is over the channels of a position; GRN alone is over the positions of a channel."""

import torch
from torch import Tensor, nn

from convnext import ops
from convnext.errors import UsageError, nearest


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension, by the fast operator where there is one. It sums in float32 whatever the dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of an (N, C, H, W) map; its output lies in memory as NHWC."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RMSNorm(nn.Module):
    """Values of the last dimension over their root mean square, scaled. It sums in float32 at least. Source: arXiv 1910.07467."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def square(self, x: Tensor) -> Tensor:
        """Return what values (…, C) are divided by, squared: (…, 1)."""
        return x.square().mean(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(self.square(wide) + self.eps) * self.weight).to(x.dtype)


class RMSNorm2d(RMSNorm):
    """RMSNorm over the channels of an (N, C, H, W) map; its output lies in memory as NHWC."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleNorm(RMSNorm):
    """Values of the last dimension over their standard deviation (of a sample), scaled but not centred. Source: timm's SimpleNorm."""

    def square(self, x: Tensor) -> Tensor:
        """Return the variance of values (…, C): (…, 1)."""
        return x.var(-1, keepdim=True)


class SimpleNorm2d(SimpleNorm):
    """SimpleNorm over the channels of an (N, C, H, W) map; its output lies in memory as NHWC."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """GRN of a map (N, H, W, C): each channel is scaled by its norm over all positions, relative to the mean norm of the channels.

    Source: Woo et al., *ConvNeXt V2*, CVPR 2023 (arXiv 2301.00808), section 3.2. It sums in float32 at least. At the beginning of
    training it changes nothing. Its parameters have one dimension, so that weight decay leaves them alone: decay would hold GRN there.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma, self.beta = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return ops.response_norm(x, self.operand())

    def operand(self) -> ops.Grn:
        """Return its parameters as the operators take them."""
        return ops.Grn(self.gamma, self.beta, self.eps)


_NORMS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "layernorm": (LayerNorm2d, LayerNorm),
    "rmsnorm": (RMSNorm2d, RMSNorm),
    "simplenorm": (SimpleNorm2d, SimpleNorm),
}


def norm_of(name: str, width: int, eps: float, *, maps: bool) -> nn.Module:
    """Return a norm over channels: of maps (N, C, H, W), or else of the last dimension (…, C). Raises UsageError for an unknown name."""
    if name not in _NORMS:
        raise UsageError(f"unknown norm_layer {name!r}{nearest(name, _NORMS)}; it can be {', '.join(_NORMS)}")
    over_maps, over_last = _NORMS[name]
    return (over_maps if maps else over_last)(width, eps=eps)
