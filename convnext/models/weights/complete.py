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
    """Return weights whose first convolution takes as many channels as the network's; see `adapt_stem`. `own` is the network's state."""
    found = dict(native)
    for key, tensor in native.items():
        ours = own[key].shape if key in own else ()
        if len(ours) == 4 and tuple(tensor.shape) == (ours[0], _RGB, *ours[2:]) and (channels := ours[1]) != _RGB:
            found[key] = adapt_stem(tensor, channels)
            what = (
                "the sum of those for red, green and blue"
                if channels == 1
                else f"those for red, green and blue in turn, scaled by 3/{channels}"
            )
            log.warning("the first convolution of %s takes 3 channels; for %d its weights are %s", file, channels, what)
    return found


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """Return the weights (O, 3, H, W) of a convolution over RGB for images of another number of channels, (O, channels, H, W).

    One channel gets the sum of the three: a grey image gives what the same image in RGB gave. Of others each gets the weights of red,
    green and blue in turn, scaled so that a sum over as many channels has the same magnitude. Source: timm's `adapt_input_conv`.
    """
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // _RGB), 1, 1)[:, :channels]
    return (repeated * (_RGB / channels)).to(weight.dtype)
