"""What weights lack for a network, completed where a sensible value is known. Each function warns of what it did."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

log = logging.getLogger("convnext")

State = dict[str, Tensor]
_RGB = 3


def with_last_norm(native: State, own: Mapping[str, Tensor], file: str) -> State:
    """Return a ConvNeXt's weights with a new last norm if they lack it, as those of a backbone do for detection or from pretraining.

    Its scale is 1 and its shift 0, as at the beginning of training. The first layer of a head of two is new, too. `own` is the state of the
    network.
    """
    lacking = own.keys() - native.keys()
    layer = {key for key in lacking if key.startswith("pre_logits.") and not own[key].is_meta}  # of a head of two layers, and random
    norm = lacking - layer
    if not lacking or not norm <= {"norm.weight", "norm.bias", "norm_pre.weight", "norm_pre.bias"}:
        return native
    what = " and ".join(name for name, keys in (("last norm", norm), ("first layer of the head", layer)) if keys)
    log.warning("%s has no %s: the network's %s new", file, what, "are" if norm and layer else "is")
    fresh = {key: (torch.ones if key.endswith("weight") else torch.zeros)(own[key].shape, dtype=own[key].dtype) for key in norm}
    return native | fresh | {key: own[key] for key in layer}


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
