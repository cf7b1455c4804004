"""ConvNeXt's whole block as one operator: what goes through memory is a map of its width, a few times, and nothing else."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from convnext.ops import depthwise, native, norm
from convnext.ops.dispatch import autocast, lowered
from convnext.ops.mlp import of_parameters
from convnext.ops.mlp import reference as mlp_reference
from convnext.ops.mlp import takes as takes_mlp


class Parameters(NamedTuple):
    """Of a block: the depthwise convolution's, the norm's, the two linear layers' and the layer scale, named as in the network."""

    dwconv_weight: Tensor
    dwconv_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gamma: Tensor | None


def reference(x: Tensor, parameters: Parameters, eps: float, keep: Tensor | None) -> Tensor:
    """Plain PyTorch: x (N, C, H, W) plus the branch, times keep (N,)."""
    conv_weight, conv_bias, norm_weight, norm_bias, w1, b1, w2, b2, gamma = parameters
    y = depthwise.reference(x, conv_weight, conv_bias).permute(0, 2, 3, 1)
    y = norm.reference(y, norm_weight, norm_bias, eps)
    return mlp_reference(y, x.permute(0, 2, 3, 1), w1, b1, w2, b2, gamma, keep).permute(0, 3, 1, 2)


def takes(x: Tensor, parameters: Parameters) -> bool:
    """Whether the compiled operator takes these: kernels 3 to 11, float32, or bf16 where the CPU multiplies it in tiles."""
    return parameters.dwconv_weight.shape[-1] in native.KERNELS and takes_mlp(x, *parameters)


def pays(x: Tensor) -> bool:
    """Whether the map x (N, C, H, W) has so many positions that packing the weights at every call is worth its time.

    It costs about what the products of 250 positions do in bf16 tiles, and of 40 in float32.
    """
    return x.numel() // max(x.shape[1], 1) >= (256 if lowered(x) == torch.bfloat16 else 64)


def block(x: Tensor, parameters: Parameters, eps: float, keep: Tensor | None) -> Tensor:
    """As `reference`, by the compiled operator where there is one for these tensors; the result has the reference's dtype."""
    if not takes(x, parameters):
        return reference(x, parameters, eps, keep)
    dtype = lowered(x)
    # Under autocast the scaled branch is float32 and raises the stream to it.
    promoted = x.dtype if parameters.gamma is None and autocast(x) else torch.promote_types(x.dtype, parameters.w2.dtype)
    return _forward(x.to(promoted), *parameters, keep, eps, dtype, torch.is_grad_enabled())[0]


@torch.library.custom_op("convnext::block", mutates_args=())
def _forward(
    x: Tensor,
    dwconv_weight: Tensor,
    dwconv_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x.is_cuda:
        from convnext.ops.triton import block as triton_block

        tensors = dwconv_weight, dwconv_bias, norm_weight, norm_bias, w1, b1, w2, b2, gamma, keep
        return triton_block.forward(x, *tensors, eps=eps, dtype=dtype)
    weights = native.packed(w1, b1, w2, b2, gamma, dtype, (norm_weight, norm_bias))
    out, *kept = native.block_forward(x, native.taps_of(dwconv_weight), dwconv_bias.float(), eps, weights, keep, train)
    convolved, mean, scale = (x.new_empty(0) if part is None else part for part in kept)
    return out, convolved, mean, scale


@torch.library.custom_op("convnext::block_backward", mutates_args=())
def _gradients(
    dout: Tensor,
    x: Tensor,
    convolved: Tensor,
    mean: Tensor,
    scale: Tensor,
    dwconv_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
) -> list[Tensor]:
    """Of x and the nine parameters, in their order."""
    if x.is_cuda:
        from convnext.ops.triton import block as triton_block

        tensors = dwconv_weight, norm_weight, norm_bias, w1, b1, w2, b2, gamma, keep
        return triton_block.backward(dout, x, convolved, mean, scale, *tensors)
    of_norm = native.Norm(mean, scale, norm_weight, norm_bias)
    found = native.mlp_backward(convolved, dout.permute(0, 2, 3, 1), w1, b1, w2, b2, gamma, keep, of_norm)
    assert found.norm_weight is not None and found.norm_bias is not None  # noqa: PT018
    dconvolved = found.y.permute(0, 3, 1, 2)
    dx = native.depthwise_forward(dconvolved, dwconv_weight.flip(-2, -1), None, add=dout)
    dweight, dbias = native.depthwise_weight_gradient(x, dconvolved, dwconv_weight.shape[-1])
    of_convolution = dweight.to(dwconv_weight.dtype), dbias.to(dwconv_weight.dtype)
    of_norms = found.norm_weight.to(norm_weight.dtype), found.norm_bias.to(norm_bias.dtype)
    return [dx, *of_convolution, *of_norms, *of_parameters(found, w1, b1, w2, b2)]


@_forward.register_fake
def _(x: Tensor, dwconv_weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, train = others[-2:]
    n, channels, height, width = x.shape
    shape = (n, height, width) if train or x.is_cuda else (0,)
    convolved = x.new_empty((*shape, channels) if len(shape) == 3 else shape, dtype=dtype)
    mean, scale = x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
    return depthwise.like(x), convolved, mean, scale


@_gradients.register_fake
def _(dout: Tensor, x: Tensor, convolved: Tensor, mean: Tensor, scale: Tensor, dwconv_weight: Tensor, *others: Any) -> list[Tensor]:
    norm_weight, norm_bias, w1, b1, w2, b2, *_ = others
    parameters = (dwconv_weight, dwconv_weight[:, 0, 0, 0], norm_weight, norm_bias, w1, b1, w2, b2, b2)
    return [depthwise.like(x), *(torch.empty_like(parameter) for parameter in parameters)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)  # of what is only kept, zeros would be made
    x, dwconv_weight, _, norm_weight, norm_bias, w1, b1, w2, b2, gamma, keep, *_ = inputs
    ctx.save_for_backward(x, *output[1:], dwconv_weight, norm_weight, norm_bias, w1, b1, w2, b2, gamma, keep)
    ctx.scaled = gamma is not None


def _backward(ctx: Any, dout: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *found, dgamma = _gradients(dout, *ctx.saved_tensors)
    return *found, dgamma if ctx.scaled else None, None, None, None, None


_forward.register_autograd(_backward, setup_context=_save)
