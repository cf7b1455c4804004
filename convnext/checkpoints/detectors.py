"""The weight files of detectors that exist, read and written.

Ours have the names of the published code ("official"): the backbone's own after `backbone.`, the output norms `backbone.norm0` to
`norm3`, and neck and heads as mmdetection 2 and 3 name them. mmdetection 3 takes its ConvNeXt from mmpretrain, which names the
parts of a block otherwise.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from convnext.checkpoints import formats
from convnext.errors import ConvnextError

log = logging.getLogger("convnext")

State = dict[str, Tensor]

FORMATS = ("official", "mmdetection")
_MARK = "rpn_head.rpn_conv.weight"  # in every two-stage detector's weights, and in no others
_MMPRETRAIN = {"dwconv": "depthwise_conv", "pwconv1": "pointwise_conv1", "pwconv2": "pointwise_conv2"}
_BLOCK_PART = r"(backbone\.stages\.\d+\.\d+\.)({})(\..+)"
_OF_CLASSES = re.compile(r"roi_head\.(bbox_head\.(\d\.)?fc_(cls|reg)|mask_head\.(\d\.)?conv_logits)\.")  # shaped by the number of classes
_SHOWN = 4  # keys of a list in an error message


def is_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether these are a detector's weights, in any format."""
    return _MARK in state


def recognise(state: Mapping[str, Tensor]) -> str:
    """The name of the format that `state` is in, one of `FORMATS`. Raises ConvnextError if it is no detector's."""
    if not is_detector(state):
        raise ConvnextError(f"these are no detector's weights: {_MARK!r} is not among {_some(sorted(state))}")
    foreign = re.compile(_BLOCK_PART.format("|".join(_MMPRETRAIN.values())))
    return "mmdetection" if any(foreign.fullmatch(key) for key in state) else "official"


def to_native(state: Mapping[str, Tensor], name: str) -> State:
    """A state in the format `name`, renamed to ours. Keys that the format does not have stay as they are."""
    if name == "mmdetection":
        state = _renamed(state, {theirs: ours for ours, theirs in _MMPRETRAIN.items()})
    inner = "backbone."
    backbone = {key.removeprefix(inner): tensor for key, tensor in state.items() if key.startswith(inner)}
    native = formats.to_native(backbone, "official")  # blocks' linear layers may come as 1 x 1 convolutions
    return {inner + key: tensor for key, tensor in native.items()} | {k: v for k, v in state.items() if not k.startswith(inner)}


def from_native(state: Mapping[str, Tensor], name: str) -> State:
    """Our state in the format `name`."""
    return _renamed(state, _MMPRETRAIN) if name == "mmdetection" else dict(state)


def load(model: Any, state: Mapping[str, Tensor], *, new_head: bool = False) -> None:
    """Fill a detector with weights of any format, every key accounted for.

    The layers whose shape depends on the number of classes stay fresh if `new_head`, or if the weights are for another number of
    classes, which is told.

    Raises ConvnextError that names the missing, unexpected and misshapen keys, and the format the weights were taken for.
    """
    known = recognise(state)
    native, own = to_native(state, known), model.state_dict()
    other = any(key in native and native[key].shape != own[key].shape for key in own if _OF_CLASSES.match(key))
    if new_head or other:
        if not new_head:
            log.warning("the weights are for another number of classes than the model's %d: their layers start afresh", model.num_classes)
        native = {key: own[key] if key in own and _OF_CLASSES.match(key) else tensor for key, tensor in native.items()}
    problems = {
        "missing": sorted(own.keys() - native.keys()),
        "unexpected": sorted(native.keys() - own.keys()),
        "misshapen": [
            f"{key} {tuple(native[key].shape)} instead of {tuple(own[key].shape)}"
            for key in sorted(own.keys() & native.keys())
            if native[key].shape != own[key].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise ConvnextError(f"these weights (taken for the {known} format) do not fit this detector: {told}")
    model.load_state_dict(native, assign=next(model.parameters()).is_meta)


def _renamed(state: Mapping[str, Tensor], words: Mapping[str, str]) -> State:
    part = re.compile(_BLOCK_PART.format("|".join(words)))
    matches = ((part.fullmatch(key), key, tensor) for key, tensor in state.items())
    return {match[1] + words[match[2]] + match[3] if match else key: tensor for match, key, tensor in matches}


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
