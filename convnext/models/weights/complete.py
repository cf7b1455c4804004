"""What weights lack for a network, completed where a sensible value is known. Each function warns of what it did."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

log = logging.getLogger("convnext")

State = dict[str, Tensor]
_RGB = 3


def with_last_norm(native: State, own: Mapping[str, Tensor], file: str) -> State:
    """Return a ConvNeXt's weights with a new last norm if they lack it, as those of a backbone for detection do.

    Its scale is 1 and its shift 0, as at the beginning of training. `own` is the state of the network.
    """
    lacking = own.keys() - native.keys()
    if lacking != {"norm.weight", "norm.bias"}:
        return native
    log.warning("%s has no last norm: the network's is new", file)
    shape, kind = own["norm.weight"].shape, own["norm.weight"].dtype
    return native | {"norm.weight": torch.ones(shape, dtype=kind), "norm.bias": torch.zeros(shape, dtype=kind)}


def with_channels(native: State, own: Mapping[str, Tensor], file: str) -> State:
    """Return weights whose first convolution takes as many channels as the network's, made from that for red, green and blue.

    For one channel it is the sum over the three. For others the three are repeated in turn and scaled, so that equal channels give what
    they gave before. This is the rule of timm's `adapt_input_conv`. `own` is the state of the network.
    """
    found = dict(native)
    for key, tensor in native.items():
        ours = own.get(key)
        if ours is None or tensor.ndim != 4 or ours.shape == tensor.shape or tensor.shape[1] != _RGB:
            continue
        channels = ours.shape[1]
        if ours.shape != (tensor.shape[0], channels, *tensor.shape[2:]):
            continue
        if channels == 1:
            adapted = tensor.float().sum(1, keepdim=True)
            what = "the sum of those for red, green and blue"
        else:
            adapted = tensor.float().repeat(1, -(-channels // _RGB), 1, 1)[:, :channels] * (_RGB / channels)
            what = f"those for red, green and blue, repeated in turn and scaled by 3/{channels}"
        found[key] = adapted.to(tensor.dtype)
        log.warning("the first convolution of %s takes 3 channels; for %d its weights are %s", file, channels, what)
    return found
