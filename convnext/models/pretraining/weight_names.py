"""The formats of masked autoencoders' weight files: our own, in which the encoder is under `backbone.` as under every head, and FCMAE's.

The published FCMAE (`models/fcmae.py` of github.com/facebookresearch/ConvNeXt-V2, "official") has the encoder under `encoder.`, and its
decoder is a list of blocks. The encoder's layers are sparse there; `convnext.models.pretraining.sparse` has made them dense before.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from convnext.errors import ConvnextError

State = dict[str, Tensor]

_MARK = "mask_token"
_ENCODER, _DECODER = re.compile(r"^encoder\."), re.compile(r"^decoder\.0\.")


def is_whole(state: Mapping[str, Tensor]) -> bool:
    """Return whether these are a masked autoencoder's weights, not those of its encoder alone."""
    return _MARK in state


def recognise(state: Mapping[str, Tensor]) -> str:
    """Return "convnext" or "official". Raises ConvnextError for other weights."""
    if _MARK not in state:
        some = ", ".join(sorted(state)[:3]) or "no tensors at all"
        raise ConvnextError(f"these are not a masked autoencoder's weights: {_MARK!r} is not among {some} …")
    return "official" if any(key.startswith("encoder.") for key in state) else "convnext"


def to_native(state: Mapping[str, Tensor], name: str) -> State:
    """Return a state in the format `name`, renamed and reshaped to ours. Keys that are unknown stay as they are."""
    if name == "convnext":
        return dict(state)
    renamed = {_DECODER.sub("decoder.", _ENCODER.sub("backbone.", key)): tensor for key, tensor in state.items()}
    return {key: tensor.reshape(-1) if ".grn." in key else tensor for key, tensor in renamed.items()}  # (1, C) and (1, 1, 1, C) there


def is_of_classes(key: str) -> bool:
    """Return False: there are no classes."""
    return False


def count_classes(native: Mapping[str, Tensor]) -> int:
    """Return 0: there are no classes."""
    return 0


def head_of(native: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    """Return "fcmae"; the tensors show none of its arguments."""
    return "fcmae", {}
