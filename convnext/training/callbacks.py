"""Callbacks: code that a run calls at its steps, evaluations and checkpoints, and that may stop it.

Two are built in: `Patience` and `TimeLimit`, which recipes set with `train.patience` and `train.max_hours`.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from convnext import distributed
from convnext.errors import ConvnextError, UsageError, first_line
from convnext.extend import CALLBACKS, find
from convnext.models.network import Network
from convnext.recipe import Recipe
from convnext.tasks.base import Json
from convnext.text import counted

Event = Literal["on_begin", "on_step", "on_evaluation", "on_save", "on_end"]

log = logging.getLogger("convnext")


class Stop(Exception):  # noqa: N818 - a request, no error
    """What a callback raises to stop the run, which saves its state, evaluates its weights, writes its report and ends without an error.

    Args:
        reason: why, in a few words.
        remedy: how to continue the run.
    """

    def __init__(self, reason: str, remedy: str = "resume with the same command and --resume") -> None:
        super().__init__(reason)
        self.reason, self.remedy = str(reason), remedy


@dataclass(frozen=True)
class Moment:
    """Where a run is when it calls its callbacks."""

    step: int  # optimizer steps done
    end: int  # the run's last step
    epoch: float  # epochs done
    seconds: float  # of the whole run, including the sessions before it was resumed
    best: float  # the best value of the headline metric so far; -inf before the first evaluation
    model: Network  # the network in training; leave it in training mode
    folder: Path  # the run folder
    line: Json = field(default_factory=dict)  # what metrics.jsonl gets now; {} in a step that `train.log_every` does not log
    is_best: bool = False  # in `on_evaluation`: whether this evaluation is the best so far
    stopped: str | None = None  # in `on_end`: why the run ended before its last step; None if it is complete


class Callback:
    """What a run calls. Override what you need: here, each method does nothing.

    Every method but `on_end` may raise `Stop`. Any other exception ends the run with an error that names the callback. Under
    torchrun the main process alone calls callbacks. If one stops the run in `on_step`, all processes stop at the same step, at
    most two steps later.
    """

    def on_begin(self, moment: Moment) -> None:
        """The run begins, or is resumed and has its state."""

    def on_step(self, moment: Moment) -> None:
        """An optimizer step was made."""

    def on_evaluation(self, moment: Moment) -> None:
        """The network was evaluated; `moment.line` has the metrics. A checkpoint follows."""

    def on_save(self, moment: Moment) -> None:
        """A checkpoint was written."""

    def on_end(self, moment: Moment) -> None:
        """The run is complete, was stopped or failed (`moment.stopped`)."""

    def state_dict(self) -> Mapping[str, object]:
        """Return what each checkpoint keeps for `load_state_dict`: numbers, texts, tensors, and lists and tables of these."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take what `state_dict` returned before the run was resumed. Called before `on_begin`."""


class Patience(Callback):
    """Stops a run after `evaluations` evaluations in a row of which none was the best so far."""

    def __init__(self, evaluations: int) -> None:
        self.evaluations, self.waited = evaluations, 0

    def on_begin(self, moment: Moment) -> None:
        self._check(moment)  # a run that it has stopped stays stopped

    def on_evaluation(self, moment: Moment) -> None:
        self.waited = 0 if moment.is_best else self.waited + 1
        self._check(moment)

    def state_dict(self) -> Mapping[str, object]:
        return {"waited": self.waited}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.waited = int(str(state["waited"]))

    def _check(self, moment: Moment) -> None:
        if self.waited >= self.evaluations:
            raise Stop(
                f"the last {counted(self.waited, 'evaluation')} did not improve the best, {moment.best:.4g} "
                f"(train.patience={self.evaluations})",
                "to continue, resume with --resume and a larger train.patience, or null",
            )


class TimeLimit(Callback):
    """Stops a run after so many hours, counted over the whole run by `Moment.seconds`, which each checkpoint keeps."""

    def __init__(self, hours: float) -> None:
        self.hours = hours

    def on_begin(self, moment: Moment) -> None:
        self._check(moment)

    def on_step(self, moment: Moment) -> None:
        self._check(moment)

    def on_evaluation(self, moment: Moment) -> None:
        self._check(moment)

    def _check(self, moment: Moment) -> None:
        if moment.seconds >= 3600 * self.hours:
            raise Stop(
                f"train.max_hours={self.hours:g} has passed", "to continue, resume with --resume and a larger train.max_hours, or null"
            )


def built_in(recipe: Recipe) -> list[Callback]:
    """Return the callbacks that a recipe sets."""
    train = recipe.train
    patience = [] if train.patience is None else [Patience(train.patience)]
    return [*patience, *([] if train.max_hours is None else [TimeLimit(train.max_hours)])]


def named(recipe: Recipe) -> list[Callback]:
    """Return a new instance of each callback that a recipe names. Raises UsageError for a name that is not known here, or no such class."""
    found: list[Callback] = []
    for name in recipe.train.callbacks:
        kind = find(CALLBACKS, name)
        if not (isinstance(kind, type) and issubclass(kind, Callback)):
            raise UsageError(f"train.callbacks: {name} must be a class that extends convnext.Callback, not a {type(kind).__name__}")
        with _named(name, "__init__"):
            found.append(kind())
    check_callbacks(found)
    return found


def check_callbacks(callbacks: object) -> None:
    """Raise UsageError unless this is a sequence of instances of `Callback` whose states can be restored."""
    if not isinstance(callbacks, Sequence):
        raise UsageError(f"callbacks must be a list of convnext.Callback, not {type(callbacks).__name__}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            what = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            raise UsageError(f"callbacks must hold instances of classes that extend convnext.Callback, not {what}")
        if _overrides(callback, "state_dict") != _overrides(callback, "load_state_dict"):
            raise UsageError(f"callback {type(callback).__name__} needs both state_dict and load_state_dict, or neither")


class CallbackGroup:
    """The callbacks of a run, which the main process calls. `stop` is what the first of them raised to stop the run."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks: dict[str, Callback] = {}
        self.stop: Stop | None = None
        for callback in callbacks if distributed.is_main() else ():
            name, number = type(callback).__name__, 1
            while (key := name if number == 1 else f"{name} {number}") in self.callbacks:
                number += 1
            self.callbacks[key] = callback
        self.is_used = distributed.from_main(bool(self.callbacks))

    def call(self, event: Event, moment: Callable[[], Moment]) -> None:
        """Call all callbacks that have this method; all processes do so at the same time.

        Raises ConvnextError, naming the callback, if one fails; on all processes, but for `on_step`, which costs no exchange.
        """
        if event == "on_step" or not self.is_used:
            self._call(event, moment)
        else:
            distributed.on_main(lambda: self._call(event, moment))

    def _call(self, event: Event, moment: Callable[[], Moment]) -> None:
        called = {name: callback for name, callback in self.callbacks.items() if _overrides(callback, event)}
        if not called:
            return
        now = moment()
        for name, callback in called.items():
            with _named(name, event):
                try:
                    getattr(callback, event)(now)
                except Stop as stop:
                    self.stop = self.stop or stop

    def is_stopped(self) -> bool:
        """Return on every process whether a callback has stopped the run. All processes call this at the same time."""
        return self.is_used and distributed.from_main(self.stop is not None)

    def reason(self) -> str | None:
        """Return on every process why a callback has stopped the run, None if none has. All processes call this at the same time."""
        return distributed.from_main(None if self.stop is None else self.stop.reason) if self.is_used else None

    @contextmanager
    def ended(self, moment: Callable[[str | None], Moment]) -> Iterator[None]:
        """On leaving, call every callback's `on_end`, whatever happened within; an error that happened there is the one raised."""
        failed: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failed = error
            raise
        finally:
            why = first_line(failed) if failed is not None else self.stop.reason if self.stop is not None else None
            found = [self._end(name, lambda: moment(why)) for name in self.callbacks]
            errors = [one for one in found if one is not None]
            for later in errors[0 if failed is not None else 1 :]:
                log.warning("%s", later)
            if errors and failed is None:
                raise errors[0]

    def _end(self, name: str, moment: Callable[[], Moment]) -> ConvnextError | None:
        try:
            with _named(name, "on_end"):
                self.callbacks[name].on_end(moment())
        except ConvnextError as error:
            return error
        return None

    def state(self) -> dict[str, object]:
        """Return the states of the callbacks that have one, by name. Raises ConvnextError for one that a checkpoint can't hold."""
        states: dict[str, object] = {}
        for name, callback in self.callbacks.items():
            with _named(name, "state_dict"):
                found = dict(callback.state_dict())
            if (other := _not_plain(found)) is not None:
                raise ConvnextError(
                    f"callback {name}: its state_dict holds a {other}: give plain numbers, texts, tensors, and lists and tables of these"
                )
            if found:
                states[name] = found
        return states

    def load(self, states: Mapping[str, object], report: Callable[[str], None]) -> None:
        """Give the main process's callbacks their states in a checkpoint; report states of callbacks that this run lacks."""
        for name, state in states.items():
            if name in self.callbacks and isinstance(state, dict):
                with _named(name, "load_state_dict"):
                    self.callbacks[name].load_state_dict(state)
            elif name != Patience.__name__:  # which the recipe has or has not
                report(f"the checkpoint has a state of the callback {name}, which this run does not have")


def _overrides(callback: Callback, method: str) -> bool:
    found = getattr(callback, method)
    return getattr(found, "__func__", found) is not getattr(Callback, method)


@contextmanager
def _named(name: str, method: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ConvnextError) else f"{type(error).__name__}: "
        raise ConvnextError(f"callback {name} failed in {method}: {kind}{first_line(error)}") from error


def _not_plain(value: object) -> str | None:
    """Return the type of a value within that restricted unpickling would refuse, None if there is none."""
    kind = type(value)
    if kind in (dict, OrderedDict) and isinstance(value, dict):
        return next((found for pair in value.items() for one in pair if (found := _not_plain(one)) is not None), None)
    if kind in (list, tuple) and isinstance(value, (list, tuple)):
        return next((found for one in value if (found := _not_plain(one)) is not None), None)
    known = (type(None), bool, int, float, str, bytes, Tensor, nn.Parameter)
    return None if kind in known else f"{kind.__module__}.{kind.__qualname__}"
