"""Weights of a first convolution over RGB, for images of other channels."""

from collections.abc import Mapping

from torch import Tensor

_RGB = 3


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """Return the weights (O, 3, H, W) of a convolution over RGB for images of another number of channels, (O, channels, H, W).

    One channel gets the sum of the three: a grey image gives what the same image in RGB gave. Of others each gets the weights of red,
    green and blue in turn, scaled so that a sum over as many channels has the same magnitude. Source: timm's `adapt_input_conv`.
    """
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // _RGB), 1, 1)[:, :channels]
    return (repeated * (_RGB / channels)).to(weight.dtype)


def adapted_stem(state: Mapping[str, Tensor], own: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return weights for images of `channels`: `adapt_stem` of the convolution that takes RGB where the network takes that many.

    Args:
        state: the weights, by the network's keys.
        own: the network's state, which shows its shapes.
        channels: of the network's images.
    """

    def is_stem(key: str) -> bool:
        ours, theirs = own[key].shape if key in own else (), state[key].shape
        return len(ours) == 4 and tuple(theirs) == (ours[0], _RGB, *ours[2:]) and ours[1] == channels != _RGB

    return {key: adapt_stem(tensor, channels) if is_stem(key) else tensor for key, tensor in state.items()}
