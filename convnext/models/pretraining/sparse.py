"""Weights of sparse networks, as the published FCMAE saves its encoder: MinkowskiEngine's layers, renamed and reshaped to PyTorch's.

Source: `remap_checkpoint_keys` of https://github.com/facebookresearch/ConvNeXt-V2/blob/main/utils.py.
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from convnext.errors import ConvnextError

State = dict[str, Tensor]

_LAYER = re.compile(r"(.+)\.(?:ln|linear)\.(weight|bias)")  # MinkowskiLayerNorm and MinkowskiLinear wrap a layer of PyTorch


def dense(state: Mapping[str, Tensor]) -> State:
    """Return a state in which the layers of sparse networks are those of dense ones; another state is returned as it is.

    A kernel lies there as (positions, inputs, outputs), or (positions, channels) of a depthwise convolution, with the columns of an image
    before its rows, and a bias as (1, outputs).

    Raises ConvnextError for a kernel that is not square.
    """
    convolutions = {key.removesuffix(".kernel") for key in state if key.endswith(".kernel")}
    if not convolutions:
        return dict(state)
    found: State = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        if module in convolutions and leaf == "kernel":
            found[f"{module}.weight"] = _kernel(key, tensor)
        elif module in convolutions and leaf == "bias":
            found[key] = tensor.reshape(-1)
        else:
            found[_LAYER.sub(r"\1.\2", key)] = tensor
    return found


def _kernel(key: str, tensor: Tensor) -> Tensor:
    side = math.isqrt(tensor.shape[0]) if tensor.ndim in (2, 3) else 0
    if side == 0 or side**2 != tensor.shape[0]:
        raise ConvnextError(
            f"{key} of these weights has the shape {tuple(tensor.shape)}, which is no square kernel of a sparse convolution"
        )
    channels_last = tensor.reshape(side, side, *tensor.shape[1:])  # column, row, …
    order = (3, 2, 1, 0) if tensor.ndim == 3 else (2, 1, 0)
    kernel = channels_last.permute(*order)
    return (kernel if tensor.ndim == 3 else kernel.unsqueeze(1)).contiguous()
