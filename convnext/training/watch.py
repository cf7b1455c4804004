"""Watchers: callbacks that send the lines of metrics.jsonl to TensorBoard, Weights & Biases or trackio during the run.

All three are optional: metrics.jsonl has everything. Each is imported only when the user asks for it. If one fails during the run,
a warning says so, it gets no more lines, and the run continues.
"""

import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from textwrap import indent
from typing import Protocol, TypeVar, cast
from uuid import uuid4

import yaml

from convnext.errors import ConvnextError, UsageError, nearest
from convnext.tasks.base import Json
from convnext.text import printable
from convnext.training.callbacks import Callback, Moment
from convnext.training.folder.run_paths import ID_FILE

PROJECT = "convnext"  # the name under which Weights & Biases and trackio group runs

log = logging.getLogger("convnext")
ValueT = TypeVar("ValueT")


class LineSink(Protocol):
    """Takes the lines of a run, one by one."""

    def log(self, line: Json) -> None:
        """Take one line of metrics.jsonl."""

    def close(self) -> None:
        """Send the lines that are not sent yet."""


class Watcher(Callback):
    """Sends the lines of a run to one service. One that fails is dropped with a warning: it must not end a run."""

    def __init__(self, name: str, sink: LineSink) -> None:
        self.name = name
        self.sink: LineSink | None = sink

    def on_step(self, moment: Moment) -> None:
        if moment.line:
            self._try(lambda sink: sink.log(moment.line))

    def on_evaluation(self, moment: Moment) -> None:
        self._try(lambda sink: sink.log(moment.line))

    def on_end(self, moment: Moment) -> None:
        self.close()

    def close(self) -> None:
        """Send the lines that are not sent yet."""
        self._try(lambda sink: sink.close())
        self.sink = None

    def _try(self, act: Callable[[LineSink], None]) -> None:
        if self.sink is None:
            return
        try:
            act(self.sink)
        except Exception as error:
            self.sink = None
            log.warning("%s failed and gets no more lines (%s); the run continues, metrics.jsonl has everything", self.name, error)


def check_watchers(names: Sequence[str]) -> None:
    """Raise UsageError for an unknown name or a missing package, before a run folder is made."""
    for name in names:
        if name not in _KNOWN:
            raise UsageError(f"unknown watcher {name!r}{nearest(name, _KNOWN)}")
        try:
            import_module(_KNOWN[name].MODULE)
        except ImportError as error:
            raise UsageError(f"watching with {name} needs its package ({error}): pip install {name}") from error


def open_watchers(names: Sequence[str], folder: Path, recipe: Json, step: int = 0) -> list[Watcher]:
    """Return the watchers of these names, ready to take lines. Once open they don't raise.

    Args:
        names: of "tensorboard", "trackio" and "wandb".
        folder: the run folder, already made.
        recipe: as plain values; shown beside the curves.
        step: the step after which the run continues. With 0, what an earlier run in this folder sent is not continued.

    A run that was killed may send some steps a second time when it is resumed. That is harmless: a repeated step has the same
    values; TensorBoard hides the older ones, Weights & Biases ignores the newer ones, trackio draws both at the same point.

    Raises UsageError like `check_watchers`, ConvnextError if one can't be started.
    """
    check_watchers(names)
    if not names:
        return []
    recipe = _shown(recipe)
    opened: list[Watcher] = []
    run_id = _run_id(folder, step)
    for name in dict.fromkeys(names):
        try:
            opened.append(Watcher(name, _KNOWN[name](folder.resolve(), recipe, step, run_id)))
        except Exception as error:
            for watcher in opened:
                watcher.close()
            raise ConvnextError(f"{name} could not be started ({error}); fix that, or train without --watch {name}") from error
    return opened


class _TensorBoard:
    """Event files in `folder/tensorboard`."""

    MODULE = "torch.utils.tensorboard"

    def __init__(self, folder: Path, recipe: Json, step: int, run_id: str) -> None:
        writer = import_module(self.MODULE).SummaryWriter
        if not step:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.writer = writer(str(folder / "tensorboard"), purge_step=step + 1 if step else None, flush_secs=10)
        if not step:
            self.writer.add_text("recipe", indent(yaml.safe_dump(recipe, sort_keys=False), "    "), 0)  # Markdown: as it is

    def log(self, line: Json) -> None:
        for tag, value in _scalars(line).items():
            self.writer.add_scalar(tag, value, line["step"])

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    """A run on wandb's server, or with WANDB_MODE=offline in `folder/wandb`."""

    MODULE = "wandb"

    def __init__(self, folder: Path, recipe: Json, step: int, run_id: str) -> None:
        init = import_module(self.MODULE).init
        self.run = init(project=PROJECT, name=printable(folder.name), dir=str(folder), config=recipe, id=run_id, resume="allow")

    def log(self, line: Json) -> None:
        self.run.log(_scalars(line), step=line["step"])

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    """A run in trackio's own folder, or where TRACKIO_SPACE_ID and the like point."""

    MODULE = "trackio"

    def __init__(self, folder: Path, recipe: Json, step: int, run_id: str) -> None:
        self.trackio = import_module(self.MODULE)
        # trackio resumes by name alone, and folders of the same name may lie in different places.
        name = f"{printable(folder.name)}-{run_id}"
        with redirect_stdout(sys.stderr):  # standard output is for results
            self.run = self.trackio.init(project=PROJECT, name=name, config=recipe, resume="allow", embed=False)

    def log(self, line: Json) -> None:
        self.run.log(_scalars(line), step=line["step"])

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.trackio.finish()  # the module's, because after the run's own it would finish it again at exit


_KNOWN: dict[str, type[_TensorBoard | _Trackio | _WeightsAndBiases]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _WeightsAndBiases,
}


def _shown(value: ValueT) -> ValueT:
    """Return plain values with texts, paths for instance, that a network protocol takes."""
    shown: object = value
    if isinstance(value, Mapping):
        shown = {key: _shown(one) for key, one in value.items()}
    elif isinstance(value, list):
        shown = [_shown(one) for one in value]
    elif isinstance(value, str):
        shown = printable(value)
    return cast(ValueT, shown)


def _scalars(line: Json) -> dict[str, float]:
    """Return a line's numbers, named like "train/loss" and "eval/top1"."""
    numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
    return {f"{line['kind']}/{key}": value for key, value in numbers.items()}


def _run_id(folder: Path, step: int) -> str:
    """Return the id of a folder's run: a new one at its start, the same when it is resumed, wherever the folder lies by then."""
    path = folder / ID_FILE
    if step and path.exists():
        return path.read_text("utf-8").strip()
    run_id = uuid4().hex[:8]
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id
