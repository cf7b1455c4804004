"""The network and options that an output was made with: noted beside it, so that a resumed call can't mix two of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.models.calibration import REFERENCE, Calibration
from convnext.models.weights.files import write_text
from convnext.tasks.base import ClassIds, Json
from convnext.tasks.exported import ExportedNetwork

_FORMAT = 1  # version of the outputs' content: raised when the same network's answers are written differently
_AGAIN = "choose another one, or add --overwrite to start again"

Options = Mapping[str, object]  # by their names on the command line, without dashes; None is not given


class Fingerprinted(Protocol):
    """What the fingerprint of a predictor depends on."""

    task: str
    model: nn.Module
    classes: list[str]
    class_ids: ClassIds | None
    preprocessing: Preprocessing
    calibration: Calibration | None
    options: dict[str, object]  # of its task


@dataclass(frozen=True)
class Fingerprint:
    """What a file of answers depends on beside the images, as plain values."""

    weights: str  # digest of their values
    network: str  # digest of architecture, task, class names and preprocessing
    options: dict[str, str]
    format: int = _FORMAT
    calibration: str | None = None  # digest, where the options ask for what it says

    def under(self, **options: object) -> "Fingerprint":
        """Return the same fingerprint with more options."""
        return replace(self, options=self.options | _given(options))

    def differences(self, other: "Fingerprint") -> list[str]:
        """Return in words what the other fingerprint has that differs from this one."""
        found = ["other weights"] if other.weights != self.weights else []
        if other.network != self.network and not found:
            found.append("another network, or other class names or preprocessing")
        if None not in (calibrations := (self.calibration, other.calibration)) and len(set(calibrations)) > 1:
            found.append("another calibration")
        if other.format != self.format:
            found.append("another version of convnext")
        for name in sorted(self.options.keys() | other.options.keys()):
            then, now = other.options.get(name), self.options.get(name)
            if then != now:
                found.append(_changed(name, then, now))
        return found


def fingerprint_of(predictor: Fingerprinted, options: Options) -> Fingerprint:
    """Return the fingerprint of a predictor, before `optimize`, with options that change what is written.

    Weights count by their values, wherever they come from; the digest is the same in each process and on each device. Exported files
    count by their bytes.
    """
    model = predictor.model
    digest = _of_files(model.path) if isinstance(model, ExportedNetwork) else _of_tensors(model.state_dict())
    network: Json = {
        "task": predictor.task,
        "model": getattr(model, "spec", None),
        "classes": list(predictor.classes),
        "class_ids": predictor.class_ids,
    }
    network["preprocessing"] = predictor.preprocessing.to_json()
    calibration = _of_calibration(predictor.calibration) if predictor.options and predictor.calibration is not None else None
    return Fingerprint(digest, _of_values(network), _given({**options, **predictor.options}), calibration=calibration)


def check(output: Path, ours: Fingerprint | None, holds_answers: bool) -> None:
    """Note the network and options that an output is made with; if it holds answers already, refuse those of others.

    The note is on the disk when this returns, before the first answer. Without `ours` nothing is noted or refused.

    Raises UsageError that says what differs, or that the note is missing or damaged.
    """
    if ours is None:
        return
    beside = path_beside(output)
    if not holds_answers:
        write_text(beside, json.dumps(asdict(ours)) + "\n")
        return
    says = f"{output} holds answers, but {beside}, which records their network and options,"
    try:
        differences = ours.differences(Fingerprint(**json.loads(beside.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        raise UsageError(f"{says} is missing: {_AGAIN}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{says} is damaged: {_AGAIN}") from error
    if differences:
        raise UsageError(f"{output} was started with {', '.join(differences)}: {_AGAIN}")


def refuse_changed(output: Path, written: int, images: Mapping[str, int]) -> None:
    """Raise UsageError if images are newer than the output with their answers. All times are in nanoseconds.

    Args:
        output: the file with the answers.
        written: when it was last written.
        images: when each was last changed, by its name.
    """
    changed = [name for name, time in images.items() if time > written]
    if changed:
        others = f" and {len(changed) - 1} more were" if len(changed) > 1 else " was"
        raise UsageError(
            f"{changed[0]}{others} changed since {output} was written: {_AGAIN}; if only their times changed, first `touch {output}`"
        )


def path_beside(output: Path) -> Path:
    """Return the path of an output's fingerprint: a hidden file beside an output file, or in an output folder."""
    return output / ".fingerprint" if output.is_dir() else output.with_name(f".{output.name}.fingerprint")


def _given(options: Options) -> dict[str, str]:
    texts = {name: ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value) for name, value in options.items()}
    return {name: text for name, text in texts.items() if options[name] is not None}


def _changed(name: str, then: str | None, now: str | None) -> str:
    name = name.replace("_", "-")
    given = f"--{name}" if then == str(True) else f"--{name} {then}"
    if then is None:
        return f"no --{name}" if now == str(True) else f"no --{name} (now {now})"
    return given if now is None else f"{given} (now {now})"


def _of_values(values: Json) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode(errors="surrogateescape")).hexdigest()


def _of_calibration(calibration: Calibration) -> str:
    reference = {} if calibration.reference is None else {REFERENCE: calibration.reference}
    return _of_values(calibration.to_json() | {REFERENCE: _of_tensors(reference)})


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
