"""ConvNeXt's block on NVIDIA GPUs from the Triton kernels; PyTorch computes products that no other step follows."""

import torch
from torch import Tensor

from convnext.ops.operands import Gradients, NormMlp, Parameters
from convnext.ops.triton import depthwise, mlp, norm


def forward(
    x: Tensor, parameters: Parameters, keep: Tensor | None, *, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the block of x (N, C, H, W), and for its backward pass the convolution's result (N, H, W, C), means and 1 / std (N, H, W).

    Products are in `dtype`, their sums in float32; the result has the dtype of x.
    """
    n, channels, height, width = x.shape
    convolved = depthwise.forward(x.to(dtype), parameters.dwconv_weight, parameters.dwconv_bias).permute(0, 2, 3, 1)
    y, means, scales = norm.forward(convolved.reshape(-1, channels), parameters.norm_weight, parameters.norm_bias, eps)
    hidden, _ = mlp.gelu_linear(y, parameters.w1, parameters.b1, save=False)
    shortcut = x.permute(0, 2, 3, 1).reshape(-1, channels)
    out = mlp.linear_residual(hidden, parameters.w2, parameters.b2, parameters.gamma, keep, shortcut, height * width)
    shape = (n, height, width)
    return out.view(*shape, channels).permute(0, 3, 1, 2), convolved, means.view(shape), scales.view(shape)


def backward(
    dout: Tensor, x: Tensor, convolved: Tensor, dwconv_weight: Tensor, of: NormMlp, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Gradients]:
    """Return the gradients of x, and of the convolution's weight and bias, both float32, and those of the rest of the block."""
    channels, rows = x.shape[1], convolved.reshape(-1, x.shape[1])
    means, scales = of.means.view(-1), of.scales.view(-1)
    normal = (rows.float() - means.unsqueeze(1)) * scales.unsqueeze(1)
    y = (normal * of.norm_weight + of.norm_bias).to(convolved.dtype)
    dy, *of_mlp = _mlp_backward(y, dout.permute(0, 2, 3, 1).reshape(-1, channels), of, keep)
    drows, dnorm_weight, dnorm_bias = norm.backward(rows, dy, of.norm_weight, means, scales)
    dconvolved = drows.view(convolved.shape).permute(0, 3, 1, 2)
    dweight, dbias = depthwise.weight_gradient(x.to(convolved.dtype), dconvolved, dwconv_weight.shape[-1])
    dx = dout + depthwise.input_gradient(dconvolved, dwconv_weight)
    return dx, dweight, dbias, Gradients(drows.view(convolved.shape), dnorm_weight, dnorm_bias, *of_mlp)


def _mlp_backward(y: Tensor, dout: Tensor, of: NormMlp, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the norm's result y (rows, C), in its dtype, and of w1, b1, w2, b2 and gamma, float32.

    Hidden values are computed again. The branch times its gradient, summed over positions, is w2 times its gradient before the layer
    scale, summed over hidden values: that gives gamma's gradient.
    """
    dtype, w1, w2, gamma = y.dtype, of.w1, of.w2, of.gamma
    branch = dout if keep is None else dout * keep.to(dout.dtype).repeat_interleave(len(y) // len(keep)).unsqueeze(1)
    branch = branch.to(dtype)
    _, z = mlp.gelu_linear(y, w1, of.b1, save=True)
    assert z is not None
    hidden, dz = mlp.gelu_backward(branch @ (w2 if gamma is None else w2 * gamma.unsqueeze(1)).to(dtype), z)
    db1, db2 = dz.sum(0, dtype=torch.float32), branch.sum(0, dtype=torch.float32)
    dw2 = (branch.T @ hidden).float()
    dgamma = (w2 * dw2).sum(1) + of.b2 * db2
    dy, dw1 = dz @ w1.to(dtype), (dz.T @ y).float()
    if gamma is not None:
        dw2, db2 = dw2 * gamma.unsqueeze(1), db2 * gamma
    return dy, dw1, db1, dw2, db2, dgamma
