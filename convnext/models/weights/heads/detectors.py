"""The formats of detectors' weight files, read and written.

Our names are the published code's ("official"): the backbone's own after `backbone.`, the output norms `backbone.norm0` to `norm3`, and
neck and heads as mmdetection 2 and 3 name them. mmdetection 3 takes its ConvNeXt from mmpretrain, which has other names for the parts of
a block.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from convnext.errors import ConvnextError
from convnext.models.weights import formats

State = dict[str, Tensor]

FORMATS = ("official", "mmdetection")
_MARK = "rpn_head.rpn_conv.weight"  # all weights of two-stage detectors have it, and no others
_MMPRETRAIN = {"dwconv": "depthwise_conv", "pwconv1": "pointwise_conv1", "pwconv2": "pointwise_conv2"}
_BLOCK_PART = r"(backbone\.stages\.\d+\.\d+\.)({})(\..+)"
_OF_CLASSES = re.compile(r"roi_head\.(bbox_head\.(\d\.)?fc_(cls|reg)|mask_head\.(\d\.)?conv_logits)\.")  # shaped by the number of classes
_BOXES = re.compile(r"roi_head\.bbox_head\.(0\.)?fc_reg\.weight")  # of the first stage: four rows per class
_SHOWN = 4  # keys of a list in an error message


def is_whole(state: Mapping[str, Tensor]) -> bool:
    """Return whether these are a detector's weights, in any format, not those of its backbone alone."""
    return _MARK in state


def recognise(state: Mapping[str, Tensor]) -> str:
    """Return the name of the format that `state` is in, one of `FORMATS`. Raises ConvnextError if it is not a detector's."""
    if not is_whole(state):
        raise ConvnextError(f"these are not a detector's weights: {_MARK!r} is not among {_some(sorted(state))}")
    foreign = re.compile(_BLOCK_PART.format("|".join(_MMPRETRAIN.values())))
    return "mmdetection" if any(foreign.fullmatch(key) for key in state) else "official"


def to_native(state: Mapping[str, Tensor], name: str) -> State:
    """Return a state in the format `name`, renamed to ours. Keys that the format does not have stay as they are."""
    if name == "mmdetection":
        state = _renamed(state, {theirs: ours for ours, theirs in _MMPRETRAIN.items()})
    inner = "backbone."
    backbone = {key.removeprefix(inner): tensor for key, tensor in state.items() if key.startswith(inner)}
    native = formats.to_native(backbone, "official")  # the linear layers of blocks may be 1 x 1 convolutions there
    return {inner + key: tensor for key, tensor in native.items()} | {k: v for k, v in state.items() if not k.startswith(inner)}


def from_native(state: Mapping[str, Tensor], name: str) -> State:
    """Return our state in the format `name`."""
    return _renamed(state, _MMPRETRAIN) if name == "mmdetection" else dict(state)


def is_of_classes(key: str) -> bool:
    """Return whether the shape of that parameter depends on the number of classes."""
    return _OF_CLASSES.match(key) is not None


def count_classes(native: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a state in our names."""
    return next((tensor.shape[0] // 4 for key, tensor in native.items() if _BOXES.fullmatch(key)), 0)


def head_of(native: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    """Return the kind of a detector and the arguments that its tensors show: its widths, and whether it finds masks."""
    cascade = any(key.startswith("roi_head.bbox_head.0.") for key in native)
    layer = native.get(f"roi_head.bbox_head.{'0.' if cascade else ''}shared_fcs.0.weight")
    found: dict[str, object] = {"channels": native[_MARK].shape[0], "masks": any(key.startswith("roi_head.mask_head.") for key in native)}
    if layer is not None:
        found["fc_channels"] = layer.shape[0]
    return "cascade_mask_rcnn" if cascade else "mask_rcnn", found


def _renamed(state: Mapping[str, Tensor], words: Mapping[str, str]) -> State:
    part = re.compile(_BLOCK_PART.format("|".join(words)))
    matches = ((part.fullmatch(key), key, tensor) for key, tensor in state.items())
    return {match[1] + words[match[2]] + match[3] if match else key: tensor for match, key, tensor in matches}


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
