"""The format of masked autoencoders' weight files: our own. The encoder is under `backbone.`, as under every head."""

from collections.abc import Mapping

from torch import Tensor

from convnext.errors import ConvnextError

State = dict[str, Tensor]

_MARK = "mask_token"


def is_whole(state: Mapping[str, Tensor]) -> bool:
    """Return whether these are a masked autoencoder's weights, not those of its encoder alone."""
    return _MARK in state


def recognise(state: Mapping[str, Tensor]) -> str:
    """Return "convnext", the name of the one format. Raises ConvnextError for other weights."""
    if _MARK not in state:
        some = ", ".join(sorted(state)[:3]) or "no tensors at all"
        raise ConvnextError(f"these are not a masked autoencoder's weights: {_MARK!r} is not among {some} …")
    return "convnext"


def to_native(state: Mapping[str, Tensor], name: str) -> State:
    """Return the state: the names are ours."""
    return dict(state)


def is_of_classes(key: str) -> bool:
    """Return False: there are no classes."""
    return False


def count_classes(native: Mapping[str, Tensor]) -> int:
    """Return 0: there are no classes."""
    return 0


def head_of(native: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    """Return "fcmae"; the tensors show none of its arguments."""
    return "fcmae", {}
