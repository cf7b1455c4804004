"""Which network and options an output is of: beside what is written, so that a call that goes on can't mix two of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from convnext.errors import UsageError
from convnext.export.runtimes import Network
from convnext.models.weights.files import write_atomically

_FORMAT = 1  # of what outputs hold: raised when the same network's answers are written otherwise
_AGAIN = "choose another one, or add --overwrite to begin anew"

Options = Mapping[str, str | int | None]  # by the names of the command line, without dashes


@dataclass(frozen=True)
class Fingerprint:
    """What a file of answers depends on beside the images: all values are plain, as JSON gives them back."""

    weights: str  # a digest
    network: str  # of architecture, task, class names and preprocessing
    options: dict[str, str]
    format: int = _FORMAT

    def under(self, **options: str | int | None) -> "Fingerprint":
        """The same under more options."""
        return replace(self, options=self.options | _given(options))

    def differences(self, other: "Fingerprint") -> list[str]:
        """What an output of the other was begun with, in words, as far as it is not what this one has."""
        found = ["other weights"] if other.weights != self.weights else []
        if other.network != self.network and not found:
            found.append("another network, or other class names or preprocessing")
        if other.format != self.format:
            found.append("another version of convnext")
        for name in sorted(self.options.keys() | other.options.keys()):
            then, now = other.options.get(name), self.options.get(name)
            if then != now:
                found.append(f"--{name} {then} (now {now})" if then and now else f"--{name} {then}" if then else f"no --{name} (now {now})")
        return found


def fingerprint_of(predictor: Any, options: Options) -> Fingerprint:
    """The fingerprint of a predictor of `load`, as it is before `optimize`, under options that change what is written.

    Weights count by their values, wherever they come from, and are the same in each process and on each device; files that were
    exported count by their bytes.
    """
    model = predictor.model
    digest = _of_files(model.path) if isinstance(model, Network) else _of_tensors(model.state_dict())
    network = {"task": predictor.task, "model": model.spec, "classes": list(predictor.classes), "class_ids": predictor.class_ids}
    network["preprocessing"] = predictor.preprocessing.to_json()
    described = hashlib.sha256(json.dumps(network, sort_keys=True, default=str).encode(errors="surrogateescape")).hexdigest()
    return Fingerprint(digest, described, _given(options))


def check(output: Path, ours: Fingerprint | None, holds_answers: bool) -> None:
    """Note whose answers an output is to hold or, where it has some, refuse those of another network or of other options.

    What is noted is on the disk when this returns, before the first answer. Without `ours` nothing is noted or refused.

    Raises UsageError that says what differs, or that nothing says whose answers are there.
    """
    if ours is None:
        return
    beside = path_beside(output)
    if not holds_answers:
        write_atomically(beside, lambda path: path.write_text(json.dumps(asdict(ours)) + "\n", encoding="utf-8"))
        return
    says = f"{output} holds answers, and {beside}, which says of which network and options,"
    try:
        differences = ours.differences(Fingerprint(**json.loads(beside.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        raise UsageError(f"{says} is missing: {_AGAIN}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{says} is damaged: {_AGAIN}") from error
    if differences:
        raise UsageError(f"{output} was begun with {', '.join(differences)}: {_AGAIN}")


def refuse_changed(output: Path, written: int, images: Iterable[Path]) -> None:
    """Raise UsageError if images that an output has answers of are newer than the last of these, by their time in nanoseconds."""
    changed = [path for path in dict.fromkeys(images) if path.exists() and path.stat().st_mtime_ns > written]
    if changed:
        others = f" and {len(changed) - 1} more were" if len(changed) > 1 else " was"
        raise UsageError(
            f"{changed[0]}{others} changed since {output} was written: {_AGAIN}; if they only look so, as copies do, `touch {output}` first"
        )


def path_beside(output: Path) -> Path:
    """The hidden file beside an output file, or in an output folder, that has its fingerprint."""
    return output / ".fingerprint" if output.is_dir() else output.with_name(f".{output.name}.fingerprint")


def _given(options: Options) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value is not None}


def _of_tensors(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _of_files(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted({path, *path.parent.glob(f"{path.stem}.bin")} if path.suffix == ".xml" else {path}):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
