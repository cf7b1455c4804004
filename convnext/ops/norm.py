"""LayerNorm over the last dimension."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops import native
from convnext.ops.dispatch import fast, operator
from convnext.ops.operands import Context, Grn


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return LayerNorm of x (…, C) with weight and bias (C,), in plain PyTorch."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def response_norm(x: Tensor, grn: Grn) -> Tensor:
    """Return GRN of a map (N, H, W, C), in its dtype. It sums in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=wide)
    relative = norms / (norms.mean(-1, keepdim=True) + grn.eps)
    if x.dtype == wide:
        return torch.addcmul(grn.beta, x, 1 + grn.gamma * relative)  # the same in one pass
    # In 16 bits the factor would be rounded, and then its product again.
    return x + (grn.gamma * (x * relative.to(x.dtype)) + grn.beta).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return what `reference` does, in x's dtype also under autocast, by the compiled operator if it takes these tensors."""
    if fast(x, weight, bias):
        return _forward(x, weight, bias, eps)[0]
    return reference(x, weight, bias, eps)


@operator("convnext::layer_norm")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if x.is_cuda:
        from convnext.ops.triton import norm as triton_norm

        y, mean, scale = triton_norm.forward(x.reshape(-1, x.shape[-1]), weight, bias, eps)
        return y.view(x.shape), mean.view(x.shape[:-1]), scale.view(x.shape[:-1])
    return native.norm_forward(x, weight, bias, eps)


@operator("convnext::layer_norm_backward")
def _gradients(x: Tensor, dy: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if x.is_cuda:
        from convnext.ops.triton import norm as triton_norm

        flat = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1]), weight, mean.view(-1), scale.view(-1)
        dx, dweight, dbias = triton_norm.backward(*flat)
        return dx.view(x.shape), dweight, dbias
    return native.norm_backward(x, dy, weight, mean, scale)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), x.new_empty(x.shape[:-1], dtype=torch.float32), x.new_empty(x.shape[:-1], dtype=torch.float32)


@_gradients.register_fake
def _(x: Tensor, dy: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), x.new_empty(x.shape[-1], dtype=torch.float32), x.new_empty(x.shape[-1], dtype=torch.float32)


def _save(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # means and 1 / std have no gradients: no zeros are made for them
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.bias_dtype = bias.dtype


def _backward(ctx: Context, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mean, scale = ctx.saved_tensors
    dx, dweight, dbias = _gradients(x, dy, weight, mean, scale)
    assert ctx.bias_dtype is not None
    return dx, dweight.to(weight.dtype), dbias.to(ctx.bias_dtype), None


_forward.register_autograd(_backward, setup_context=_save)
