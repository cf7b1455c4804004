"""The types that operators and their backward passes hand to each other."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Parameters(NamedTuple):
    """A block's parameters, named as in the network."""

    dwconv_weight: Tensor  # (C, 1, K, K)
    dwconv_bias: Tensor  # (C,)
    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    w1: Tensor  # (4 C, C), of pwconv1
    b1: Tensor  # (4 C,)
    w2: Tensor  # (C, 4 C), of pwconv2
    b2: Tensor  # (C,)
    gamma: Tensor | None  # layer scale (C,)


class Grn(NamedTuple):
    """A block's Global Response Normalization (ConvNeXt V2), behind the activation."""

    gamma: Tensor  # (4 C,)
    beta: Tensor  # (4 C,)
    eps: float


class NormMlp(NamedTuple):
    """The parameters of a block's norm and MLP, and each position's mean and 1 / std, which the forward pass kept."""

    means: Tensor  # (N, H, W) float32
    scales: Tensor  # (N, H, W) float32
    norm_weight: Tensor
    norm_bias: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gamma: Tensor | None


class Gradients(NamedTuple):
    """The gradients of the norm's input, in its dtype, and of the parameters of `NormMlp`, float32; gamma's also without a layer scale."""

    convolved: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gamma: Tensor


class Context(FunctionCtx):
    """The context that autograd passes to a backward pass, with types for the attributes that our operators use."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    bias_dtype: torch.dtype | None  # None without a bias
    has_gamma: bool
