"""Depthwise convolution with stride 1 and 'same' padding on maps that lie in memory as NHWC."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops import native
from convnext.ops.dispatch import fast, lowered, operator
from convnext.ops.interface import KERNELS
from convnext.ops.operands import Context


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of x (N, C, H, W) by weight (C, 1, K, K), K odd, plus bias (C,), in plain PyTorch."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what `reference` does, by the compiled operator for kernels 3 to 11 in float32 or bf16."""
    if weight.shape[-1] in KERNELS and fast(x, weight, bias):
        return _forward(x.to(lowered(x)), weight, bias)
    return reference(x, weight, bias)


@operator("convnext::depthwise_conv")
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.is_cuda:
        from convnext.ops.triton import depthwise as triton_depthwise

        return triton_depthwise.forward(x, weight, bias)
    return native.depthwise_forward(x, weight, bias)


@operator("convnext::depthwise_input_gradient")
def _input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    if dy.is_cuda:
        from convnext.ops.triton import depthwise as triton_depthwise

        return triton_depthwise.input_gradient(dy, weight)
    return native.depthwise_forward(dy, weight.flip(-2, -1), None)


@operator("convnext::depthwise_weight_gradient")
def _weight_gradient(x: Tensor, dy: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    if x.is_cuda:
        from convnext.ops.triton import depthwise as triton_depthwise

        return triton_depthwise.weight_gradient(x, dy, kernel)
    return native.depthwise_weight_gradient(x, dy, kernel)


def like(x: Tensor) -> Tensor:
    """Return an empty map of x's shape that lies in memory as NHWC."""
    return torch.empty_like(x.permute(0, 2, 3, 1), memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return like(x)


@_input_gradient.register_fake
def _(dy: Tensor, weight: Tensor) -> Tensor:
    return like(dy)


@_weight_gradient.register_fake
def _(x: Tensor, dy: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return x.new_empty(channels, 1, kernel, kernel, dtype=torch.float32), x.new_empty(channels, dtype=torch.float32)


def _save(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx = dweight = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _input_gradient(dy, weight)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        dweight, dbias = _weight_gradient(x, dy, weight.shape[-1])
        dweight, dbias = dweight.to(weight.dtype), None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype)
    return dx, dweight, dbias


_forward.register_autograd(_backward, setup_context=_save)
