"""The runs of a roadmap: one after the other on one device, or as many at a time as there are devices, each in a process of its own."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import IO, TextIO, cast

import torch
from rich.console import Console

from convnext.errors import ConvnextError, UsageError, first_line
from convnext.recipe import Recipe
from convnext.training.folder.run_folder import Report, RunFolder
from convnext.training.progress.signals import StoppedError, stop_signals
from convnext.training.run import train

CONTINUE = "the same command continues"
_LOOK_EVERY = 0.5  # seconds between two looks whether a signal came


@dataclass(frozen=True)
class Run:
    """One step of the roadmap, trained from one seed."""

    step: int  # position in `STEPS`
    recipe: Recipe
    folder: Path

    @property
    def label(self) -> str:
        """The step and the seed, as messages show them."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def top1(self) -> float | None:
        """Return the top-1 accuracy at the end, None before it.

        Raises UsageError if the folder's run has another recipe, ConvnextError if that is damaged.
        """
        folder = RunFolder(self.folder)
        if not folder.holds_a_run():
            return None
        try:
            differences = folder.differences(self.recipe)
        except (ConvnextError, ValueError) as error:
            raise ConvnextError(
                f"{folder.recipe} is empty or damaged ({first_line(error)}): remove {self.folder}, and the same command trains it again"
            ) from error
        if differences:
            raise UsageError(
                f"{self.folder} was begun with another recipe: {'; '.join(differences)}; "
                "give the same overrides as then, or another --output for a roadmap with these"
            )
        found = folder.evaluation_at_the_end_of(self.recipe)
        return None if found is None else cast(float, found["top1"])

    def is_finished(self) -> bool:
        """Return whether the run came to its end, its report included."""
        return self.top1() is not None and RunFolder(self.folder).report.exists()


def train_all(runs: Sequence[Run], devices: Sequence[str], report: Report, ended: Callable[[Run], None]) -> None:
    """Train or resume every run, and call `ended` after each. The first that fails keeps the others from beginning.

    Raises ConvnextError if a run fails; those beside it come to their ends first. Raises StoppedError after SIGINT, SIGTERM or SIGHUP,
    when the runs in progress have saved their states.
    """
    if len(devices) > 1:
        _train_beside_each_other(runs, devices, ended)
        return
    for number, run in enumerate(runs, start=1):
        report(f"{run.label}: run {number} of {len(runs)}")
        _train(run, devices[0])
        ended(run)


def _train(run: Run, device: str, console: Console | None = None) -> None:
    try:
        train(run.recipe, output=run.folder, resume=True, device=device, console=console)
    except StoppedError as error:
        raise StoppedError(f"the run {run.folder} has {first_line(error).partition(';')[0]}: {CONTINUE}") from error
    except ConvnextError as error:
        raise ConvnextError(f"the run {run.folder} failed: {error}; {CONTINUE}") from error


@dataclass(frozen=True)
class _Child:
    run: Run
    device: str
    process: SpawnProcess


def _train_beside_each_other(runs: Sequence[Run], devices: Sequence[str], ended: Callable[[Run], None]) -> None:
    waiting, free, failed, asked = list(runs), list(devices), "", False
    threads = max(1, torch.get_num_threads() // max(1, devices.count("cpu")))  # more threads than cores wait for each other
    active: dict[Connection, _Child] = {}
    with stop_signals() as caught:
        while active or (waiting and not failed and not caught):
            while waiting and free and not failed and not caught:
                active |= _begin(waiting.pop(0), free.pop(0), threads)
            for run, device, reason in _ends(active):
                free.append(device)
                if not reason:
                    ended(run)
                failed = failed or reason
            if caught and not asked:
                asked = True
                for child in active.values():
                    child.process.terminate()  # a signal to this process alone does not reach them; they save and end
    if caught and (waiting or failed):
        raise StoppedError(f"stopped; the runs have saved their states: {CONTINUE}")
    if failed:
        raise ConvnextError(failed)


def _begin(run: Run, device: str, threads: int) -> dict[Connection, _Child]:
    """Start a run in a process, and return that by the connection on which its answer comes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_train_in_a_child, args=(run, device, threads, there))
    process.start()
    there.close()  # so that the death of the process ends the connection
    return {here: _Child(run, device, process)}


def _ends(active: dict[Connection, _Child]) -> Iterator[tuple[Run, str, str]]:
    """Yield the run, its device and why it failed, or "", for each process that ended, and take it out of `active`. Waits a moment."""
    for connection in wait(list(active), timeout=_LOOK_EVERY):
        child = active.pop(cast("Connection", connection))
        try:
            reason = cast("Connection", connection).recv()
            child.process.join()
        except EOFError:
            child.process.join()
            reason = f"the run {child.run.folder} failed: its process ended with code {child.process.exitcode}; {CONTINUE}"
        yield child.run, child.device, reason


def _train_in_a_child(run: Run, device: str, threads: int, answer: Connection) -> None:
    """Train, with a label before each line of progress, and answer why it failed, or ""."""
    reason = ""
    torch.set_num_threads(threads)
    try:
        _train(run, device, Console(file=cast(IO[str], _Labelled(sys.stderr, run.label))))
    except ConvnextError as error:
        reason = str(error)
    except Exception as error:
        reason = f"the run {run.folder} failed: {type(error).__name__}: {first_line(error)} (a defect of convnext); {CONTINUE}"
    answer.send(reason)


class _Labelled:
    """A text stream whose lines begin with a label, so that several processes can share a terminal."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label = stream, label

    def write(self, text: str) -> int:
        """Write lines with the label before each."""
        return self._stream.write("".join(f"{self._label}: {line}" for line in text.splitlines(keepends=True) if line.strip()))

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
