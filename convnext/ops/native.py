"""The CPU's compiled operators, called on tensors.

Nothing here checks what it is given beyond what would crash: `depthwise.py`, `norm.py`, `mlp.py` and `block.py` choose between these and
plain PyTorch. Maps are (N, C, H, W) tensors that lie in memory as NHWC; results are too.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops.build import call, number

KERNELS = (3, 5, 7, 9, 11)
# Packed weights are of the dtype of the products they are for; SPLIT are float32 numbers as sums of two bf16.
SPLIT = torch.int32
_PRODUCTS = {torch.float32: 0, torch.bfloat16: 1, SPLIT: 2}


def nhwc(x: Tensor) -> Tensor:
    """A map (N, C, H, W) as (N, H, W, C) without gaps, copied only where it does not lie so already."""
    # Not by is_contiguous(channels_last), which maps of one pixel or one channel meet in any layout.
    return x.permute(0, 2, 3, 1).contiguous()


def float32(like: Tensor, *shape: int) -> Tensor:
    """An empty float32 tensor of that shape beside `like`."""
    return like.new_empty(shape, dtype=torch.float32)


def depthwise_forward(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
    """X (N, C, H, W) float32 or bf16, convolved by weight (C, 1, K, K), plus bias (C,) or a map, in whose dtype the result then is."""
    x, taps = nhwc(x), taps_of(weight)
    bias, add = _floats(bias), None if add is None else nhwc(add)
    y = torch.empty_like(x if add is None else add)
    n, height, width, channels = x.shape
    call("depthwise_forward", x, taps, bias, add, y, x.dtype, y.dtype, n, height, width, channels, weight.shape[-1])
    return y.permute(0, 3, 1, 2)


def depthwise_weight_gradient(x: Tensor, dy: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """The gradients of weight (C, 1, K, K) and bias (C,), float32; x and dy of one dtype, or x float32 and dy bf16."""
    x, dy = nhwc(x), nhwc(dy)
    n, height, width, channels = x.shape
    dweight, dbias = float32(x, kernel, kernel, channels), float32(x, channels)
    call("depthwise_weight_gradient", x, dy, dweight, dbias, x.dtype, dy.dtype, n, height, width, channels, kernel)
    return dweight.permute(2, 0, 1).unsqueeze(1).contiguous(), dbias


def norm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over the last dimension: the result in x's dtype or `dtype`, and of each position the mean and 1 / deviation, float32."""
    x = x.contiguous()
    y, mean, scale = torch.empty_like(x, dtype=dtype), float32(x, *x.shape[:-1]), float32(x, *x.shape[:-1])
    call("norm_forward", x, weight.float(), bias.float(), y, mean, scale, x.dtype, y.dtype, mean.numel(), x.shape[-1], eps)
    return y, mean, scale


def norm_backward(x: Tensor, dy: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, the last two float32."""
    x, dy = x.contiguous(), dy.contiguous()
    dx, dweight, dbias = torch.empty_like(x), float32(x, x.shape[-1]), float32(x, x.shape[-1])
    call("norm_backward", x, dy, weight.float(), mean, scale, dx, dweight, dbias, x.dtype, dy.dtype, mean.numel(), x.shape[-1])
    return dx, dweight, dbias


def pack(weight: Tensor, rows: Tensor | None, columns: Tensor | None, products: torch.dtype) -> Tensor:
    """A matrix (n, k), times `rows` (n,) and `columns` (k,) where given, in the order that these products read, padded to 32s."""
    n, k = weight.shape
    packed = weight.new_empty(-(-n // 32) * -(-k // 32) * 1024, dtype=products)
    weight = weight.float()
    call("mlp_pack", weight, *weight.stride(), _floats(rows), _floats(columns), packed, n, k, products_of(packed))
    return packed


def products_of(packed: Tensor) -> int:
    """The number by which the library knows the products that packed weights are for."""
    return _PRODUCTS[packed.dtype]


def _floats(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float().contiguous()


def pad(bias: Tensor) -> Tensor:
    """A vector in float32, filled up with zeros to a multiple of 32 as the products' columns are."""
    return F.pad(bias.float(), (0, -bias.numel() % 32))


class Packed(NamedTuple):
    """The MLP's weights in the order in which the compiled operators read them."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    hidden: int


def packed(
    w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, products: torch.dtype, norm: tuple[Tensor, Tensor] | None = None
) -> Packed:
    """The weights for the forward pass, with the norm's weight and bias before and the layer scale behind them folded in, exactly."""
    weight, bias = (None, None) if norm is None else norm
    first_bias = b1 if bias is None else torch.addmv(b1.float(), w1.float(), bias.float())
    second_bias = b2 if gamma is None else b2.float() * gamma
    return Packed(pack(w1, None, weight, products), pad(first_bias), pack(w2, gamma, None, products), pad(second_bias), len(w1))


def mlp_forward(y: Tensor, shortcut: Tensor, weights: Packed, keep: Tensor | None) -> Tensor:
    """Shortcut + keep γ (GELU(y W1ᵀ + b1) W2ᵀ + b2); y (N, …, C) bf16 with tiles, shortcut as y or float32, keep (N,)."""
    y, shortcut = y.contiguous(), shortcut.contiguous()
    out, rows = torch.empty_like(shortcut), y.numel() // y.shape[-1]
    sizes = (rows, rows // len(y), y.shape[-1], weights.hidden)
    call("mlp_forward", y, shortcut, out, *weights[:4], _floats(keep), out.dtype, *sizes, products_of(weights.first))
    return out


class Norm(NamedTuple):
    """What the backward pass of the whole block needs of the norm: each position's mean and 1 / deviation, and its parameters."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor


class Gradients(NamedTuple):
    """Of y, in its dtype, and of the MLP's parameters, float32; gamma's is there without a scale, too, the norm's with a norm."""

    y: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gamma: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


def mlp_backward(
    y: Tensor,
    dout: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    norm: Norm | None = None,
) -> Gradients:
    """The gradients. With `norm`, y is the map before the norm, and its gradient is that map's."""
    y, dout, channels, hidden, tiles = y.contiguous(), dout.contiguous(), y.shape[-1], len(w1), y.dtype == torch.bfloat16
    first, second, transposed = pack(w1, None, None, y.dtype), pack(w2.T, None, gamma, y.dtype), pack(w1.T, None, None, y.dtype)
    rows = y.numel() // channels
    size = number("mlp_backward_sums", rows, channels, hidden, tiles)
    dy, sums = torch.empty_like(y), float32(y, size)
    of_norm = (None,) * 4 if norm is None else (norm.mean, norm.scale, norm.weight.float(), norm.bias.float())
    sizes = (rows, rows // len(y), channels, hidden)
    packed, plain = (first, pad(b1), second, transposed), (_floats(w2), _floats(b2), _floats(gamma))
    shapes = [(hidden, channels), (hidden,), (channels, hidden), (channels,), (channels,)]
    found = [float32(y, *shape) for shape in shapes]
    found_of_norm = [None, None] if norm is None else [float32(y, channels), float32(y, channels)]
    call("mlp_backward", y, *of_norm, dout, *packed, *plain, _floats(keep), dy, sums, dout.dtype, *sizes, tiles, *found, *found_of_norm)
    return Gradients(dy, *found, *found_of_norm)


def block_forward(
    x: Tensor, taps: Tensor, bias: Tensor | None, eps: float, weights: Packed, keep: Tensor | None, train: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """ConvNeXt's whole block, and with `train` what its backward pass needs: the convolution's result, means and 1 / deviations.

    x (N, C, H, W) is float32, or with tiles bf16; taps (K, K, C) and bias (C,) are float32.
    """
    x = nhwc(x)
    n, height, width, channels = x.shape
    out, convolved, mean, scale = torch.empty_like(x), None, None, None
    if train:
        convolved = torch.empty_like(x, dtype=weights.first.dtype)
        mean, scale = float32(x, n, height, width), float32(x, n, height, width)
    sizes = (n, height, width, channels, weights.hidden, taps.shape[0])
    kept = (convolved, mean, scale)
    call("block_forward", x, taps, bias, eps, *weights[:4], _floats(keep), *kept, out, x.dtype, *sizes, products_of(weights.first))
    return out.permute(0, 3, 1, 2), *kept


def taps_of(weight: Tensor) -> Tensor:
    """A depthwise convolution's weight (C, 1, K, K) as (K, K, C) float32."""
    return weight.float()[:, 0].permute(1, 2, 0).contiguous()
