"""Take a network's weights out of what wraps them: containers of a training run, prefixes of wrapping modules, shards.

What is inside is found by the names of the network's own weights, whatever the wrapper's. Only open_clip's have to be known: there a
part of the network is outside.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from convnext.errors import ConvnextError, UsageError, first_line
from convnext.text import counted, printable

log = logging.getLogger("convnext")

INDEX = ".index.json"  # the end of the name of a table of shards
# In this order, which begins with that of the published code; then what else training programs write.
_ENTRIES = (
    "model",
    "state_dict",
    "model_ema",
    "model_state_dict",
    "state_dict_ema",
    "ema",
    "teacher",
    "student",
    "net",
    "network",
    "module",
)
_MAX_INDEX = 16 << 20  # bytes
_MAX_SHARDS = 1000
_SHOWN = 3
_CLIP_TRUNK = re.compile(r"((?:.+\.)?visual\.)trunk\.stages\.0\.blocks\.0\.conv_dw\.weight")
# The projection is the trunk's head: of one layer, or of two with GELU between.
_CLIP_HEADS = {"head.proj.": "head.fc.", "head.mlp.fc1.": "head.pre_logits.fc.", "head.mlp.fc2.": "head.fc."}

State = dict[str, Tensor]


def state_of(content: object, path: Path, entry: str | None) -> State:
    """Return the state dict in the content of a checkpoint.

    Args:
        content: a table of tensors, or a table that has one under a known name, in several steps too.
        path: of the checkpoint, for messages.
        entry: the name under which to look instead, for instance "model_ema".

    Raises UsageError if there is no such entry, ConvnextError if no table of tensors is found.
    """
    if entry is not None:
        if not isinstance(content, Mapping):
            raise UsageError(f"{path} has no entries, so none called {entry!r}")
        if entry not in content:
            raise UsageError(f"{path} has no entry {entry!r}; it has {', '.join(map(str, content))}")
        content = content[entry]
    while isinstance(content, Mapping) and not _is_state(content):
        inner = next((key for key in _ENTRIES if isinstance(content.get(key), Mapping) and content[key]), None)
        if inner is None:
            break
        if "hyper_parameters" in content:
            log.warning("%s: only its weights are read (%s); its hyper_parameters are ignored", path, inner)
        content = content[inner]
    if not _is_state(content):
        has = f" (it has {printable(', '.join(map(str, content))[:200])})" if isinstance(content, Mapping) and content else ""
        raise ConvnextError(f"{path} is not a plain table of tensors: name the entry that is, as in {path.name}#model_ema{has}")
    return dict(cast("Mapping[str, Tensor]", content))


def _is_state(content: object) -> bool:
    return isinstance(content, Mapping) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def unwrapped(state: Mapping[str, Tensor], marks: Iterable[str]) -> tuple[State, list[str]]:
    """Return the weights of a network without the prefix that they have in `state`, and the names of what is not under that prefix.

    `marks` are names of which the network's weights have one. Of several prefixes the shortest is taken. Without any, the state is
    returned as it is.
    """
    marks = tuple(marks)
    prefixes = {key.removesuffix(mark) for key in state for mark in marks if key == mark or key.endswith(f".{mark}")}
    prefix = min(prefixes, key=lambda one: (len(one), one), default="")
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inside, [key for key in state if not key.startswith(prefix)]


def without_shared_prefix(state: Mapping[str, Tensor]) -> State:
    """Return a state without the first words that all of its names share."""
    found = dict(state)
    while (words := {key.partition(".")[0] for key in found}) and len(words) == 1 and all("." in key for key in found):
        found = {key.partition(".")[2]: value for key, value in found.items()}
        if any(key in ("weight", "bias") for key in found):  # a single layer, no network
            return dict(state)
    return found


def with_clip_head(state: Mapping[str, Tensor]) -> State:
    """Return a state of open_clip with the projection behind the image tower as the head of timm's network, which the tower is.

    The projection has no bias, and a head has one: it is 0. All else stays as it is, and so does a state that holds no such tower.
    """
    tower = next((match[1] for key in state if (match := _CLIP_TRUNK.fullmatch(key))), None)
    if tower is None:
        return dict(state)
    found = {_of_clip(key, tower): tensor for key, tensor in state.items()}
    weight = found.get(f"{tower}trunk.head.fc.weight")
    if weight is not None and weight.ndim:
        found.setdefault(f"{tower}trunk.head.fc.bias", torch.zeros(weight.shape[0], dtype=weight.dtype))
    return found


def _of_clip(key: str, tower: str) -> str:
    for theirs, timms in _CLIP_HEADS.items():
        if key.startswith(tower + theirs):
            return f"{tower}trunk.{timms}{key.removeprefix(tower + theirs)}"
    return key


def warn_of_ignored(names: list[str], file: str) -> None:
    """Warn of weights that are not the network's."""
    if names:
        shown = ", ".join(printable(name) for name in sorted(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        log.warning("%s also holds %s that the network does not have, ignored: %s", file, counted(len(names), "tensor"), shown)


def read_shards(index: Path, read: Callable[[Path], State]) -> State:
    """Return the tensors of all shards that an index of transformers (`model.safetensors.index.json`) names.

    Raises ConvnextError if the index is damaged, or names a file outside its folder.
    """
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise ValueError("it is too long")
        table = json.loads(index.read_text("utf-8"))["weight_map"]
        shards = sorted(set(table.values()))
        if len(shards) > _MAX_SHARDS or any(Path(name).name != name or name.endswith(INDEX) for name in shards):
            raise ValueError("it names other files than shards beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvnextError(f"{index}, the index of its shards, can't be read: {first_line(error)}") from error
    state: State = {}
    for name in shards:
        state |= read(index.with_name(name))
    if missing := sorted(table.keys() - state.keys()):
        raise ConvnextError(f"the shards of {index} lack {missing[0]}: download them again")
    return state
