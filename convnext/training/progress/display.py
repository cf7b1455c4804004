"""What a user sees of a run on standard error: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from convnext.report import metrics
from convnext.text import printable
from convnext.training.progress.clock import Clock

_MIN_BAR = 10  # characters


class Display:
    """Shows steps, images per second, loss, the headline metric and the time left.

    Args:
        console: where to show it.
    """

    LINE_EVERY = 10.0  # seconds between plain lines

    def __init__(self, console: Console) -> None:
        self.console = console
        self.values: dict[str, str] = {}
        columns = (TextColumn("{task.fields[what]}"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[values]}"))
        self.bar = Progress(*columns, _ClockColumn(self), console=console)

    def begin(self, total: int, done: int) -> None:
        """Begin with a run of `total` steps, `done` of which were made before it was resumed."""
        self.clock, self.printed_at = Clock(total), time.monotonic()
        self.task = self.bar.add_task("", total=total, completed=done, what="training", values="")

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def step(self, step: int, epoch: int, **values: float) -> None:
        """Show that `step` steps are done; `values`, by their keys in metrics.jsonl, replace those shown."""
        self.clock.step(step)
        self.keep(values)
        if self.console.is_terminal:
            what = f"epoch {epoch}"
            self.bar.update(self.task, completed=step, what=what, values=self._fitting(what))
        elif self._is_due():
            self.report(f"epoch {epoch} · step {step} of {self.clock.total} · {self.words()} · {self.clock.words()}")

    def keep(self, values: Mapping[str, float]) -> None:
        """Take the values of a step, which are shown from now on."""
        self.values |= {key: form.format(values[key]) for key, form in _FORMATS.items() if key in values}

    def evaluating(self, done: int, total: int) -> None:
        """Show that `done` of `total` validation images are done."""
        if self.console.is_terminal:
            self.bar.update(self.task, what=f"validation: {done} of {total} images", values="")
        elif self._is_due():
            self.report(f"validation: {done} of {total} images · {self.clock.words()}")

    def evaluated(self, epoch: float, message: str, **values: float) -> None:
        """Report an evaluation; `values` stay shown, as in `step`."""
        self.values |= {
            key: f"{metrics.label(key)} {metrics.value(key, value)}".replace("\N{NO-BREAK SPACE}", " ") for key, value in values.items()
        }
        self.report(f"epoch {round(epoch, 2):g} · validation: {message}")
        self.bar.update(self.task, what=f"epoch {round(epoch, 2):g}")

    def report(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def words(self) -> str:
        """Return the values that are shown, on one line."""
        return " · ".join(self._values())

    def _values(self) -> list[str]:
        """Return the values, the most important first."""
        return [self.values[key] for key in sorted(self.values, key=lambda key: key == "images_per_second")]

    def _fitting(self, what: str) -> str:
        """Return the first values that fit beside a short bar: on a narrow terminal the time left matters more than the others."""
        room = self.console.width - len(f"{what} {self.clock.total}/{self.clock.total} {self.clock.words()} ") - _MIN_BAR
        shown = self._values()
        while shown and len(" · ".join(shown)) > room:
            shown.pop()
        return " · ".join(shown)

    def _is_due(self) -> bool:
        is_due = time.monotonic() - self.printed_at >= self.LINE_EVERY
        if is_due:
            self.printed_at = time.monotonic()
        return is_due


class _ClockColumn(ProgressColumn):
    """The time that passed and that is left."""

    def __init__(self, display: Display) -> None:
        super().__init__(Column(no_wrap=True))
        self._display = display

    def render(self, task: Task) -> Text:
        return Text(self._display.clock.words())


class Unbreakable:
    """A text stream that may be closed, as a terminal is: from then on writing does nothing, and raises no error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, unless the stream is closed."""
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, unless the stream is closed."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


_FORMATS = {
    "images_per_second": "{:.0f} images/s",
    "loss": "loss {:.3f}",
}
