"""The MLP of ConvNeXt's block with GELU, layer scale, stochastic depth and residual, as one operator."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops import native
from convnext.ops.dispatch import autocast, fast, lowered, tiles


def reference(
    y: Tensor, shortcut: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None
) -> Tensor:
    """Plain PyTorch: shortcut + keep gamma (GELU(y w1ᵀ + b1) w2ᵀ + b2).

    Args:
        y, shortcut: (N, …, C), the normalised map and what its result is added to.
        w1, b1: (4 C, C) and (4 C,).
        w2, b2: (C, 4 C) and (C,).
        gamma: layer scale (C,).
        keep: what stochastic depth multiplies each sample's result by, (N,).
    """
    out = F.linear(F.gelu(F.linear(y, w1, b1)), w2, b2)
    if gamma is not None:
        out = gamma * out
    if keep is not None:
        out = out * keep.view(-1, *(1,) * (out.ndim - 1))
    return shortcut + out


def takes(y: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the compiled operator takes these: float32, bf16 where the CPU multiplies it in tiles, all on GPUs."""
    return fast(y, *parameters) and (y.is_cuda or lowered(y) == torch.float32 or tiles())


def mlp(y: Tensor, shortcut: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None) -> Tensor:
    """As `reference`, by the compiled operator where there is one for these tensors; the result has the reference's dtype."""
    if not takes(y, w1, b1, w2, b2, gamma):
        return reference(y, shortcut, w1, b1, w2, b2, gamma, keep)
    # Under autocast the scaled branch is float32 and raises the stream to it.
    promoted = shortcut.dtype if gamma is None and autocast(y) else torch.promote_types(shortcut.dtype, w2.dtype)
    return _forward(y.to(lowered(y)), shortcut.to(promoted), w1, b1, w2, b2, gamma, keep)


@torch.library.custom_op("convnext::mlp", mutates_args=())
def _forward(
    y: Tensor, shortcut: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None
) -> Tensor:
    if y.is_cuda:
        from convnext.ops.triton import block as triton_block

        return triton_block.mlp_forward(y, shortcut, w1, b1, w2, b2, gamma, keep)
    weights = native.packed(w1, b1, w2, b2, gamma, y.dtype)
    return native.mlp_forward(y, shortcut, weights, keep)


@torch.library.custom_op("convnext::mlp_backward", mutates_args=())
def _gradients(
    dout: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of y, w1, b1, w2, b2 and gamma. Hidden values are computed again, so that they are never held for the whole map."""
    if y.is_cuda:
        from convnext.ops.triton import block as triton_block

        found = triton_block.mlp_backward(y, dout, w1, b1, w2, b2, gamma, keep)
    else:
        found = native.mlp_backward(y, dout, w1, b1, w2, b2, gamma, keep)
    return found.y, *of_parameters(found, w1, b1, w2, b2)


def of_parameters(found: native.Gradients, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Those of w1, b1, w2, b2 and gamma, each in its parameter's dtype, gamma's in b2's."""
    return found.w1.to(w1.dtype), found.b1.to(b1.dtype), found.w2.to(w2.dtype), found.b2.to(b2.dtype), found.gamma.to(b2.dtype)


@_forward.register_fake
def _(y: Tensor, shortcut: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None) -> Tensor:
    return torch.empty_like(shortcut, memory_format=torch.contiguous_format)


@_gradients.register_fake
def _(
    dout: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_y = torch.empty_like(y, memory_format=torch.contiguous_format)
    return of_y, torch.empty_like(w1), torch.empty_like(b1), torch.empty_like(w2), torch.empty_like(b2), torch.empty_like(b2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    y, _, w1, b1, w2, b2, gamma, keep = inputs
    ctx.save_for_backward(y, w1, b1, w2, b2, gamma, keep)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    y, w1, b1, w2, b2, gamma, keep = ctx.saved_tensors
    dout = dout.contiguous()
    dy, dw1, db1, dw2, db2, dgamma = _gradients(dout, y, w1, b1, w2, b2, gamma, keep)
    return dy, dout, dw1, db1, dw2, db2, None if gamma is None else dgamma, None


_forward.register_autograd(_backward, setup_context=_save)
