"""ConvNeXt's whole block as one operator: it reads and writes maps of the block's width, never its hidden values.

With GRN (ConvNeXt V2) it keeps the hidden values of an image. That operator has no backward pass: where gradients are needed, and on a GPU,
PyTorch computes the block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops import depthwise, native, norm
from convnext.ops.dispatch import autocast, constant, fast, lowered, needs_gradients, operator, tiles
from convnext.ops.interface import KERNELS
from convnext.ops.operands import Context, Grn, NormMlp, Parameters


def reference(x: Tensor, parameters: Parameters, eps: float, keep: Tensor | None, grn: Grn | None = None) -> Tensor:
    """Return x (N, C, H, W) plus the block's branch times keep (N,), in plain PyTorch; with `grn`, of ConvNeXt V2's block.

    keep is the factor of stochastic depth for each image.
    """
    conv_weight, conv_bias, norm_weight, norm_bias, w1, b1, w2, b2, gamma = parameters
    y = depthwise.reference(x, conv_weight, conv_bias).permute(0, 2, 3, 1)
    y = norm.reference(y, norm_weight, norm_bias, eps)
    y = F.gelu(F.linear(y, w1, b1))
    y = F.linear(y if grn is None else norm.response_norm(y, grn), w2, b2)
    if gamma is not None:
        y = gamma * y
    if keep is not None:
        y = y * keep.view(-1, 1, 1, 1)
    return (x.permute(0, 2, 3, 1) + y).permute(0, 3, 1, 2)


def takes(x: Tensor, parameters: Parameters, grn: Grn | None = None) -> bool:
    """Return whether the compiled operator takes these: kernels 3 to 11 in float32, in bf16 where the CPU has tiles, or on a GPU.

    With GRN it takes them on a CPU, and only where no gradients are needed.
    """
    tensors = (*parameters, *(() if grn is None else (grn.gamma, grn.beta)))
    if parameters.dwconv_weight.shape[-1] not in KERNELS or not fast(x, *tensors):
        return False
    if grn is not None and (x.is_cuda or needs_gradients(x, *tensors)):
        return False
    return x.is_cuda or lowered(x) == torch.float32 or tiles()


def pays(x: Tensor) -> bool:
    """Return whether the map x (N, C, H, W) has so many positions that packing the weights at every call is worth its time.

    Packing takes about as long as the products of 250 positions in bf16 tiles, of 40 in float32, and less with AVX-512 than with AVX2.
    """
    least = 256 if lowered(x) == torch.bfloat16 else 32 if _has_avx512() else 64
    return x.numel() // max(x.shape[1], 1) >= least


@constant
def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def block(x: Tensor, parameters: Parameters, eps: float, keep: Tensor | None, grn: Grn | None = None) -> Tensor:
    """Return what `reference` does, in its dtype, by the compiled operator if it takes these tensors."""
    if not takes(x, parameters, grn):
        return reference(x, parameters, eps, keep, grn)
    dtype = lowered(x)
    # Under autocast the scaled branch is float32, and the sum with it too.
    promoted = x.dtype if parameters.gamma is None and autocast(x) else torch.promote_types(x.dtype, parameters.w2.dtype)
    if grn is not None:
        return _grn_forward(x.to(promoted), *parameters, keep, eps, dtype, *grn)
    return _forward(x.to(promoted), *parameters, keep, eps, dtype, torch.is_grad_enabled())[0]


@operator("convnext::block")
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
    """Return the block's result, and for its backward pass (else empty) the convolution's result, means and 1 / std."""
    if x.is_cuda:
        from convnext.ops.triton import block as triton_block

        parameters = Parameters(dwconv_weight, dwconv_bias, norm_weight, norm_bias, w1, b1, w2, b2, gamma)
        return triton_block.forward(x, parameters, keep, eps=eps, dtype=dtype)
    weights = native.pack_mlp(w1, b1, w2, b2, gamma, (norm_weight, norm_bias), dtype, once=True)
    taps, bias = native.taps_of(dwconv_weight), dwconv_bias.float().contiguous()
    out, *saved = native.block_forward(x, taps, bias, eps, weights, keep, train)
    convolved, means, scales = (x.new_empty(0) if part is None else part for part in saved)
    return out, convolved, means, scales


@operator("convnext::grn_block")
def _grn_forward(
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
    grn_gamma: Tensor,
    grn_beta: Tensor,
    grn_eps: float,
) -> Tensor:
    """Return the result of a block with GRN; it has no backward pass."""
    weights = native.pack_mlp(w1, b1, w2, b2, gamma, (norm_weight, norm_bias), dtype, Grn(grn_gamma, grn_beta, grn_eps), once=True)
    return native.block_forward(x, native.taps_of(dwconv_weight), dwconv_bias.float().contiguous(), eps, weights, keep, False)[0]


@_grn_forward.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return depthwise.like(x)


@operator("convnext::block_backward")
def _gradients(
    dout: Tensor,
    x: Tensor,
    convolved: Tensor,
    means: Tensor,
    scales: Tensor,
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
    """Return the gradients of x and of the nine parameters, in their order and dtypes."""
    of = NormMlp(means, scales, norm_weight, norm_bias, w1, b1, w2, b2, gamma)
    if x.is_cuda:
        from convnext.ops.triton import block as triton_block

        dx, dweight, dbias, found = triton_block.backward(dout, x, convolved, dwconv_weight, of, keep)
    else:
        found = native.norm_mlp_backward(convolved, dout.permute(0, 2, 3, 1), of, keep)
        dconvolved = found.convolved.permute(0, 3, 1, 2)
        dx = native.depthwise_forward(dconvolved, dwconv_weight.flip(-2, -1), None, add=dout)
        dweight, dbias = native.depthwise_weight_gradient(x, dconvolved, dwconv_weight.shape[-1])
    parameters = dwconv_weight, dwconv_weight, norm_weight, norm_bias, w1, b1, w2, b2, b2
    gradients = dweight, dbias, *found[1:]
    return [dx, *(gradient.to(parameter.dtype) for gradient, parameter in zip(gradients, parameters, strict=True))]


@_forward.register_fake
def _(
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
    n, channels, height, width = x.shape
    shape = (n, height, width) if train or x.is_cuda else (0,)
    convolved = x.new_empty((*shape, channels) if len(shape) == 3 else shape, dtype=dtype)
    means, scales = x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
    return depthwise.like(x), convolved, means, scales


@_gradients.register_fake
def _(
    dout: Tensor,
    x: Tensor,
    convolved: Tensor,
    means: Tensor,
    scales: Tensor,
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
    parameters = (dwconv_weight, dwconv_weight[:, 0, 0, 0], norm_weight, norm_bias, w1, b1, w2, b2, b2)
    return [depthwise.like(x), *(torch.empty_like(parameter) for parameter in parameters)]


def _save(ctx: Context, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # the results that are only kept have no gradients: no zeros are made for them
    x, dwconv_weight, _, norm_weight, norm_bias, w1, b1, w2, b2, gamma, keep, *_ = inputs
    ctx.save_for_backward(x, *output[1:], dwconv_weight, norm_weight, norm_bias, w1, b1, w2, b2, gamma, keep)
    ctx.has_gamma = gamma is not None


def _backward(ctx: Context, dout: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *found, dgamma = _gradients(dout, *ctx.saved_tensors)
    return *found, dgamma if ctx.has_gamma else None, None, None, None, None


_forward.register_autograd(_backward, setup_context=_save)
