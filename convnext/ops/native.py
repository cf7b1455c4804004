"""The CPU's compiled operators, called on tensors.

Nothing here checks its arguments beyond what would crash: `depthwise.py`, `norm.py` and `block.py` choose between these and plain
PyTorch. Maps are (N, C, H, W) tensors that lie in memory as NHWC; results are too.
"""

import threading
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops.build import call, number
from convnext.ops.interface import PRODUCTS
from convnext.ops.operands import Gradients, Grn, NormMlp


def nhwc(x: Tensor) -> Tensor:
    """Return a map (N, C, H, W) as a contiguous (N, H, W, C), copied only where it does not lie so already."""
    # Not by is_contiguous(channels_last), which is true of maps of one pixel or one channel in any layout.
    return x.permute(0, 2, 3, 1).contiguous()


def float32(like: Tensor, *shape: int) -> Tensor:
    """Return an empty float32 tensor of that shape on the device of `like`."""
    return like.new_empty(shape, dtype=torch.float32)


def depthwise_forward(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
    """Return the convolution of x (N, C, H, W), float32 or bf16, by weight (C, 1, K, K), plus bias (C,) or plus a map `add`.

    The result has the dtype of `add`, or else that of x.
    """
    x, add = nhwc(x), None if add is None else nhwc(add)
    y = torch.empty_like(x if add is None else add)
    n, height, width, channels = x.shape
    call(
        "depthwise_forward",
        x=x, taps=taps_of(weight), bias=_contiguous_float32(bias), add=add, y=y, dtype=x.dtype, y_dtype=y.dtype,
        n=n, height=height, width=width, channels=channels, kernel=weight.shape[-1],
    )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def depthwise_weight_gradient(x: Tensor, dy: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight (C, 1, K, K) and bias (C,), float32; x and dy have one dtype, or x is float32 and dy bf16."""
    x, dy = nhwc(x), nhwc(dy)
    n, height, width, channels = x.shape
    dtaps, dbias = float32(x, kernel, kernel, channels), float32(x, channels)
    call(
        "depthwise_weight_gradient",
        x=x, dy=dy, dtaps=dtaps, dbias=dbias, dtype=x.dtype, dy_dtype=dy.dtype,
        n=n, height=height, width=width, channels=channels, kernel=kernel,
    )  # fmt: skip
    return dtaps.permute(2, 0, 1).unsqueeze(1).contiguous(), dbias


def norm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return LayerNorm over the last dimension, in x's dtype, and the mean and 1 / std of each position, float32."""
    x = x.contiguous()
    y, means, scales = torch.empty_like(x), float32(x, *x.shape[:-1]), float32(x, *x.shape[:-1])
    call(
        "norm_forward",
        x=x, weight=weight.float().contiguous(), bias=bias.float().contiguous(), y=y, means=means, scales=scales,
        dtype=x.dtype, rows=means.numel(), channels=x.shape[-1], eps=eps,
    )  # fmt: skip
    return y, means, scales


def norm_backward(x: Tensor, dy: Tensor, weight: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias, the last two float32."""
    x, dy = x.contiguous(), dy.contiguous()
    dx, dweight, dbias = torch.empty_like(x), float32(x, x.shape[-1]), float32(x, x.shape[-1])
    call(
        "norm_backward",
        x=x, dy=dy, weight=weight.float().contiguous(), means=means, scales=scales, dx=dx, dweight=dweight, dbias=dbias,
        dtype=x.dtype, dy_dtype=dy.dtype, rows=means.numel(), channels=x.shape[-1],
    )  # fmt: skip
    return dx, dweight, dbias


_scratch = threading.local()


def pack(
    weight: Tensor, row_scale: Tensor | None, column_scale: Tensor | None, products: torch.dtype, scratch: str | None = None
) -> Tensor:
    """Return a matrix (n, k), times row_scale (n,) and column_scale (k,) if given, in the order that these products read.

    Both sides are padded to multiples of 32. `scratch` names memory of this thread that the result takes until the next call with that
    name: new memory costs a page fault every 4 KB, which takes longer than packing.
    """
    weight, packed = _readable(weight), _memory(weight, products, scratch)
    row_step, column_step = weight.stride()
    call(
        "pack_weight",
        weight=weight, row_step=row_step, column_step=column_step, row_scale=_contiguous_float32(row_scale),
        column_scale=_contiguous_float32(column_scale), packed=packed, n=len(weight), k=weight.shape[1], products=PRODUCTS[products],
    )  # fmt: skip
    return packed


def _readable(weight: Tensor) -> Tensor:
    """Return a matrix in float32 with a step of 1 along rows or columns."""
    return (weight if 1 in weight.stride() else weight.contiguous()).float()


def _memory(weight: Tensor, products: torch.dtype, scratch: str | None) -> Tensor:
    """Return memory for a packed matrix (n, k): new, or this thread's of a name."""
    n, k = weight.shape
    count = -(-n // 32) * -(-k // 32) * 1024
    return weight.new_empty(count, dtype=products) if scratch is None else _reused(weight, scratch, count, products)


def _reused(like: Tensor, name: str, count: int, dtype: torch.dtype) -> Tensor:
    """Return the first values of this thread's memory of that name, made larger where it is too small."""
    kept: Tensor | None = getattr(_scratch, name, None)
    size = count * dtype.itemsize
    if kept is None or kept.numel() < size:
        kept = like.new_empty(size, dtype=torch.uint8)
        setattr(_scratch, name, kept)
    return kept[:size].view(dtype)


def _contiguous_float32(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float().contiguous()


def pad(bias: Tensor) -> Tensor:
    """Return vectors (…, n) in float32, padded with zeros to a multiple of 32 as the products' columns are."""
    return F.pad(bias.float(), (0, -bias.shape[-1] % 32))


class LooseMlp(NamedTuple):
    """The weights of a block's MLP as they are, float32, to be packed while they are used."""

    w1: Tensor
    norm_weight: Tensor
    w2: Tensor
    gamma: Tensor | None


class PackedMlp(NamedTuple):
    """The weights of a block's MLP in the order in which the compiled operators read them."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    grn: Tensor  # GRN's gamma and beta; no values without GRN
    grn_eps: float
    hidden: int
    loose: LooseMlp | None = None  # if given, `first` and `second` are memory to pack these


def pack_mlp(
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gamma: Tensor | None,
    norm: tuple[Tensor, Tensor],
    products: torch.dtype,
    grn: Grn | None = None,
    *,
    once: bool = False,
) -> PackedMlp:
    """Return the weights for the forward pass, with the norm's weight and bias and the layer scale folded in, exactly.

    With `once` they are for one call, which packs them: into this thread's memory, or for few positions, where reading the weights takes
    most of the time, a few columns at a time in the cores' caches.
    """
    weight, bias = norm
    first_bias = pad(torch.addmv(b1.float(), w1.float(), bias.float()))
    second_bias = pad(b2 if gamma is None else b2.float() * gamma)
    both, eps = (w1.new_empty(0), 0.0) if grn is None else (pad(torch.stack((grn.gamma, grn.beta))), grn.eps)
    if once:
        loose = LooseMlp(_readable(w1), weight.float().contiguous(), _readable(w2), _contiguous_float32(gamma))
        first, second = _memory(w1, products, "first"), _memory(w2, products, "second")
        return PackedMlp(first, first_bias, second, second_bias, both, eps, len(w1), loose)
    first, second = pack(w1, None, weight, products), pack(w2, gamma, None, products)
    return PackedMlp(first, first_bias, second, second_bias, both, eps, len(w1))


def _loose(weights: LooseMlp | None) -> dict[str, Tensor | int | None]:
    """Return the arguments of `block_forward` for weights that are not packed."""
    tensors: tuple[Tensor | None, ...] = (None,) * 4 if weights is None else weights
    (w1_row, w1_column), (w2_row, w2_column) = ((0, 0), (0, 0)) if weights is None else (weights.w1.stride(), weights.w2.stride())
    steps = {"w1_row_step": w1_row, "w1_column_step": w1_column, "w2_row_step": w2_row, "w2_column_step": w2_column}
    return {**dict(zip(LooseMlp._fields, tensors, strict=True)), **steps}


def norm_mlp_backward(convolved: Tensor, dout: Tensor, of: NormMlp, keep: Tensor | None) -> Gradients:
    """Return the gradients of a block's branch behind the convolution.

    Args:
        convolved: (N, H, W, C), the convolution's result; bf16 on CPUs with tiles only.
        dout: (N, H, W, C), the gradient of the block's result, float32 or `convolved`'s dtype.
        of: the parameters, any dtype.
        keep: factor of each image's branch (N,), or None.
    """
    convolved, dout, channels, hidden, dtype = convolved.contiguous(), dout.contiguous(), convolved.shape[-1], len(of.w1), convolved.dtype
    rows = convolved.numel() // channels
    sums = float32(convolved, number("norm_mlp_backward_sums", rows=rows, channels=channels, hidden=hidden, dtype=dtype))
    found = Gradients(
        convolved=torch.empty_like(convolved),
        norm_weight=float32(convolved, channels),
        norm_bias=float32(convolved, channels),
        w1=float32(convolved, hidden, channels),
        b1=float32(convolved, hidden),
        w2=float32(convolved, channels, hidden),
        b2=float32(convolved, channels),
        gamma=float32(convolved, channels),
    )
    call(
        "norm_mlp_backward",
        convolved=convolved, means=of.means, scales=of.scales, norm_weight=of.norm_weight.float().contiguous(),
        norm_bias=of.norm_bias.float().contiguous(), dout=dout,
        first=pack(of.w1, None, None, dtype, "first"), first_bias=pad(of.b1), second=pack(of.w2.T, None, of.gamma, dtype, "second"),
        first_transposed=pack(of.w1.T, None, None, dtype, "first_transposed"), w2=_contiguous_float32(of.w2), b2=_contiguous_float32(of.b2),
        gamma=_contiguous_float32(of.gamma), keep=_contiguous_float32(keep), dconvolved=found.convolved, sums=sums,
        dtype=dtype, dout_dtype=dout.dtype, rows=rows, positions=rows // len(convolved), channels=channels, hidden=hidden,
        dnorm_weight=found.norm_weight, dnorm_bias=found.norm_bias,
        dw1=found.w1, db1=found.b1, dw2=found.w2, db2=found.b2, dgamma=found.gamma,
    )  # fmt: skip
    return found


def block_forward(
    x: Tensor, taps: Tensor, bias: Tensor | None, eps: float, weights: PackedMlp, keep: Tensor | None, train: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return ConvNeXt's whole block, and with `train` what its backward pass needs: the convolution's result, means and 1 / std.

    x (N, C, H, W) is float32, or with tiles bf16; taps (K, K, C) and bias (C,) are float32. A block with GRN has no backward pass here.
    """
    x = nhwc(x)
    n, height, width, channels = x.shape
    out, convolved, means, scales = torch.empty_like(x), None, None, None
    if train:
        convolved = torch.empty_like(x, dtype=weights.first.dtype)
        means, scales = float32(x, n, height, width), float32(x, n, height, width)
    call(
        "block_forward",
        x=x, taps=taps, bias=bias, eps=eps, first=weights.first, first_bias=weights.first_bias, second=weights.second,
        second_bias=weights.second_bias, **_loose(weights.loose), grn=weights.grn, grn_eps=weights.grn_eps, keep=_contiguous_float32(keep),
        convolved=convolved, means=means, scales=scales, out=out, dtype=x.dtype, n=n, height=height, width=width, channels=channels,
        hidden=weights.hidden, kernel=taps.shape[0], products=PRODUCTS[weights.first.dtype],
    )  # fmt: skip
    return out.permute(0, 3, 1, 2), convolved, means, scales


def taps_of(weight: Tensor) -> Tensor:
    """Return a depthwise convolution's weight (C, 1, K, K) as (K, K, C) float32."""
    return weight.float()[:, 0].permute(1, 2, 0).contiguous()
