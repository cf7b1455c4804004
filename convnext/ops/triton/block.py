"""ConvNeXt's block on NVIDIA GPUs from the Triton kernels; products without anything around them are left to PyTorch's library."""

import torch
from torch import Tensor

from convnext.ops import native
from convnext.ops.mlp import of_parameters
from convnext.ops.triton import depthwise, mlp, norm


def mlp_forward(
    y: Tensor, shortcut: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None
) -> Tensor:
    """As `mlp.reference`, in the dtype of y with sums in float32; the result in shortcut's."""
    rows, channels = y.numel() // y.shape[-1], y.shape[-1]
    hidden, _ = mlp.gelu_linear(y.reshape(-1, channels), w1, b1, save=False)
    out = mlp.linear_residual(hidden, w2, b2, gamma, keep, shortcut.reshape(-1, channels), rows // max(len(y), 1))
    return out.view(shortcut.shape)


def mlp_backward(
    y: Tensor, dout: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None
) -> native.Gradients:
    """As `native.mlp_backward` without a norm: hidden values are computed again.

    The branch times its gradient, summed over positions, is w2 times its gradient before the scale, summed over hidden values: so
    follows the scale's.
    """
    channels, dtype = y.shape[-1], y.dtype
    rows, branch = y.reshape(-1, channels), dout.reshape(-1, channels)
    if keep is not None:
        branch = branch * keep.to(branch.dtype).repeat_interleave(len(rows) // len(keep)).unsqueeze(1)
    branch = branch.to(dtype)
    _, z = mlp.gelu_linear(rows, w1, b1, save=True)
    assert z is not None
    hidden, dz = mlp.gelu_backward(branch @ (w2 if gamma is None else w2 * gamma.unsqueeze(1)).to(dtype), z)
    db1, db2 = dz.sum(0, dtype=torch.float32), branch.sum(0, dtype=torch.float32)
    dw2 = (branch.T @ hidden).float()
    dgamma = (w2 * dw2).sum(1) + b2 * db2
    dy, dw1 = (dz @ w1.to(dtype)).view(y.shape), (dz.T @ rows).float()
    if gamma is not None:
        dw2, db2 = dw2 * gamma.unsqueeze(1), db2 * gamma
    return native.Gradients(dy, dw1, db1, dw2, db2, dgamma)


def forward(
    x: Tensor,
    dwconv_weight: Tensor,
    dwconv_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *of_mlp: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The block's result, and what its backward pass needs: the convolution's result (N, H, W, C), means and 1 / deviations."""
    convolved = depthwise.forward(x.to(dtype), dwconv_weight, dwconv_bias).permute(0, 2, 3, 1)
    y, mean, scale = norm.forward(convolved.reshape(-1, x.shape[1]), norm_weight, norm_bias, eps)
    w1, b1, w2, b2, gamma, keep = of_mlp
    assert w1 is not None and b1 is not None and w2 is not None and b2 is not None  # noqa: PT018
    out = mlp_forward(y.view(convolved.shape), x.permute(0, 2, 3, 1), w1, b1, w2, b2, gamma, keep)
    places = convolved.shape[:-1]
    return out.permute(0, 3, 1, 2), convolved, mean.view(places), scale.view(places)


def backward(
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
    """The gradients of x and the nine parameters, in their order."""
    channels, rows = x.shape[1], convolved.reshape(-1, x.shape[1])
    normal = (rows.float() - mean.view(-1, 1)) * scale.view(-1, 1)
    y = (normal * norm_weight + norm_bias).to(convolved.dtype).view(convolved.shape)
    found = mlp_backward(y, dout.permute(0, 2, 3, 1), w1, b1, w2, b2, gamma, keep)
    flat = rows, found.y.reshape(-1, channels), norm_weight, mean.view(-1), scale.view(-1)
    drows, dnorm_weight, dnorm_bias = norm.backward(*flat)
    dconvolved = drows.view(convolved.shape).permute(0, 3, 1, 2)
    dweight, dbias = depthwise.weight_gradient(x.to(convolved.dtype), dconvolved, dwconv_weight.shape[-1])
    dx = dout + depthwise.input_gradient(dconvolved, dwconv_weight)
    of_conv = dweight.to(dwconv_weight.dtype), dbias.to(dwconv_weight.dtype)
    of_norm = dnorm_weight.to(norm_weight.dtype), dnorm_bias.to(norm_bias.dtype)
    return [dx, *of_conv, *of_norm, *of_parameters(found, w1, b1, w2, b2)]
