"""Read and write weight files, never through unrestricted pickle.

safetensors is preferred; files of torch.save are read with PyTorch's restricted unpickler. The content says which a file is.
"""

import argparse
import errno
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convnext.errors import ConvnextError, UsageError, disk_full, first_line, is_disk_full
from convnext.models.calibration import REFERENCE, Calibration
from convnext.models.register import imports_of
from convnext.models.weights import wrapped
from convnext.models.weights.description import Description, check_size, parse
from convnext.text import printable

OWN_METADATA = "convnext"  # the metadata key under which our own files describe themselves, as JSON
_NUMPY = re.compile(r"numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray|random\.)")
_PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile


def read_weights(path: Path, entry: str | None = None) -> tuple[dict[str, Tensor], Description]:
    """Return the tensors of a weight file by name, and our own description of them ({} in files that others wrote).

    Args:
        path: a file of safetensors or of torch.save, whatever its name, or an index of shards (`.index.json`).
        entry: which entry of a wrapped checkpoint to take, for instance "model_ema"; by default the first that it has of
            "model", "state_dict", "model_ema" and other usual names.

    Raises ConvnextError, naming the file, if it is missing, truncated, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise ConvnextError(f"no weight file {path}")
    if path.name.endswith(wrapped.INDEX):
        return wrapped.read_shards(path, lambda shard: read_weights(shard)[0]), {}
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind is None:
        raise ConvnextError(f"{path} is no weight file: its content is neither safetensors nor what torch.save writes")
    return strip_prefixes(wrapped.state_of(read_restricted(path), path, entry)), {}


def _kind(path: Path) -> str | None:
    """Return "safetensors" or "torch" by a file's content; by its ending if it is too short to tell."""
    with path.open("rb") as file:
        head = file.read(9)
        file.seek(257)
        is_tar = file.read(5) == b"ustar"  # as old versions of torch.save wrote
    if path.suffix == ".safetensors" or (head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size):
        return "safetensors"
    known = is_tar or head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".tar")
    return "torch" if known else None


def read_restricted(path: Path) -> object:
    """Return the content of a torch.save file, on the CPU. The unpickler builds only tensors and plain containers.

    Raises ConvnextError, naming the file, if it is truncated or holds other objects.
    """
    try:
        # The published code saves its command line beside the weights, as a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConvnextError(
            f"{path} holds more than tensors{_others(path, error)} and was not loaded, because reading it could run any code: "
            "its author can save the tensors alone, with torch.save(model.state_dict(), FILE). If you trust the author, convert it in "
            "Python: c = torch.load(FILE, weights_only=False); torch.save(c['state_dict'], NEW), or another key of c that holds the tensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ConvnextError(f"{path} is truncated or damaged: {first_line(error)}") from error


def _others(path: Path, error: Exception) -> str:
    """Return in brackets what a file holds beside tensors; of a damaged one, that it may be damaged."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of a damaged file, or one that is no archive
        names = re.findall(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error))
    names = sorted({name for name in names if name != "argparse.Namespace"})
    if not names:
        return ", or is damaged,"
    shown = [*(["NumPy values"] if any(map(_NUMPY.match, names)) else []), *(name for name in names if not _NUMPY.match(name))]
    return f" ({printable(', '.join(shown[:5]))})"


def write_weights(
    path: Path,
    state: Mapping[str, Tensor],
    about: Mapping[str, object] | Description | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Write tensors to `path` atomically: safetensors with our description, or `{"model": state}` as `.pth`.

    The description names the modules that register a network or a task from outside the package, and holds the calibration, whose
    reference is one more tensor. Raises UsageError for a calibration without a description, or for a file that holds none.
    """
    if calibration is not None:
        if not about or path.suffix != ".safetensors":
            raise UsageError(f"{path}: a calibration needs a .safetensors file with a description")
        about = {**about, "calibration": calibration.to_json()}
        state = {**state, **({} if calibration.reference is None else {REFERENCE: calibration.reference})}
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        metadata = {"format": "pt"} | ({OWN_METADATA: json.dumps(with_imports(about))} if about else {})
        write_atomically(path, lambda file: save_file(tensors, file, metadata))
    elif path.suffix in (".pth", ".pt", ".bin"):
        write_atomically(path, lambda file: torch.save({"model": tensors}, file))
    else:
        raise UsageError(f"{path}: the name must end in .safetensors or .pth")


def with_imports(about: Mapping[str, object] | Description) -> dict[str, object]:
    """Return a description with the modules that register its network and its task, if these come from outside the package."""
    model = cast("Mapping[str, object]", about["model"])
    needed = imports_of(str(model["name"]), str(about["task"]))
    return {**about, **({"imports": needed} if needed else {})}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    Raises ConvnextError if the disk is full or the folder cannot be written; what was at `path` before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # some writers make files that only their owner reads
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise unwritable(path, _cause(temporary, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8. Raises ConvnextError as `write_atomically` does."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def remove_temporaries(folder: Path, pattern: str) -> None:
    """Remove the temporary files of a killed `write_atomically` for files of that pattern. No process may be writing them."""
    for path in folder.glob(f".{pattern}.*.tmp"):
        path.unlink(missing_ok=True)


def unwritable(path: Path, error: Exception) -> ConvnextError:
    """Return the error for a file that can't be written: its name, the reason, and what to do."""
    if is_disk_full(error):
        return disk_full(path)
    code = getattr(error, "errno", None)
    reason = first_line(error)
    if code == errno.EROFS or not os.access(path.parent, os.W_OK):
        reason = f"its folder can't be written: check its permissions and how its disk is mounted ({reason})"
    elif isinstance(error, RuntimeError | SafetensorError):  # PyTorch and safetensors do not say why
        reason = f"the disk may be full, or a limit on files reached: see df and ulimit -f ({reason})"
    return ConvnextError(f"could not write {path}: {reason}; what was there before is untouched")


def _cause(temporary: Path, error: Exception) -> Exception:
    """Return the system's own error for a file that PyTorch or safetensors could not fill, which often don't say why."""
    if isinstance(error, OSError):
        return error
    try:
        with temporary.open("ab") as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as found:
        return found
    return error


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Description]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(OWN_METADATA)
            about: Description = parse(text, path) if text is not None else {}
            state = {name: _aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ConvnextError(f"{path} is truncated or damaged: {error}") from error
    if about:
        check_size(about["model"], state, path)
    return state, about


def _aligned(tensor: Tensor) -> Tensor:
    # Matrix products round differently if memory begins within a cache line. The same weights must give the same bits.
    # Windows can't replace a file of which tensors are mapped.
    return tensor if tensor.data_ptr() % 64 == 0 and os.name != "nt" else tensor.clone()


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the prefixes that wrappers of the whole model put on every key."""
    stripped = dict(state)
    while prefix := next((p for p in _PREFIXES if stripped and all(key.startswith(p) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped
