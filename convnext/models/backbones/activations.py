"""The activations of ConvNeXt's family, by name."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.errors import UsageError, nearest


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), which the first CLIP has in place of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
    "relu": F.relu,
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function of that name. Raises UsageError for an unknown one."""
    if name not in ACTIVATIONS:
        raise UsageError(f"unknown activation {name!r}{nearest(name, ACTIVATIONS)}; it can be {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Activation(nn.Module):
    """An activation as a layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = activation_of(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
