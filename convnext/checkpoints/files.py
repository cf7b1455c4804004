"""Reading and writing weight files, never through unrestricted pickle.

`.safetensors` is preferred; `.pth`, `.pt` and `.bin` are read with PyTorch's restricted unpickler.
"""

import argparse
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convnext.errors import ConvnextError, UsageError

OWN_METADATA = "convnext"  # the metadata key under which our own files describe themselves, as JSON
_WRAPPERS = ("model", "state_dict", "model_ema")  # in the order in which the published code takes them
_PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile


def read_weights(path: Path, entry: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weight file by name, and our own description of them ({} in files that others wrote).

    Args:
        path: a `.safetensors`, `.pth`, `.pt` or `.bin` file.
        entry: which entry of a wrapped checkpoint to take, for instance "model_ema"; by default the first of
            "model", "state_dict" and "model_ema" that is there.

    Raises ConvnextError, naming the file, if it is missing, truncated, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise ConvnextError(f"no weight file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise UsageError(f"{path} is no weight file that is known here: .safetensors, .pth, .pt or .bin")
    return _unwrap(read_restricted(path), path, entry), {}


def read_restricted(path: Path) -> Any:
    """A torch.save file through the unpickler that builds only tensors and plain containers, on the CPU.

    Raises ConvnextError, naming the file, if it is truncated or holds other objects.
    """
    try:
        # The published code saves its command line beside the weights; a Namespace holds only what was parsed.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ConvnextError(f"{path} holds more than tensors, or is damaged, and was not loaded: {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ConvnextError(f"{path} is truncated or damaged: {error}") from error


def write_weights(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any] | None = None) -> None:
    """Write tensors to `path`, at once or not at all: safetensors with our description, or `{"model": state}` as `.pth`."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        metadata = {"format": "pt"} | ({OWN_METADATA: json.dumps(description)} if description else {})
        write_atomically(path, lambda file: save_file(tensors, file, metadata))
    elif path.suffix in (".pth", ".pt", ".bin"):
        write_atomically(path, lambda file: torch.save({"model": tensors}, file))
    else:
        raise UsageError(f"{path}: the name must end in .safetensors or .pth")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, force it to the disk, and put it in place of `path` in one step.

    Raises ConvnextError if the disk is full or the folder cannot be written; what was at `path` before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # some writers make files that only their owner reads
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConvnextError(f"could not write {path}: {error}; what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get(OWN_METADATA, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ConvnextError(f"{path} is truncated or damaged: {error}") from error


def _unwrap(content: Any, path: Path, entry: str | None) -> dict[str, Tensor]:
    if entry is not None:
        if not isinstance(content, Mapping) or entry not in content:
            raise UsageError(f"{path} has no entry {entry!r}; it has {', '.join(map(str, content))}")
        content = content[entry]
    elif isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConvnextError(f"{path} holds no plain table of tensors; name the entry that does, as in {path.name}#model_ema")
    return strip_prefixes(content)


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefixes that wrappers of the whole model leave on every key."""
    stripped = dict(state)
    while prefix := next((p for p in _PREFIXES if stripped and all(key.startswith(p) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped
