"""What a user sees of a run in a notebook: one output with a bar, the last numbers and the curves so far."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console

from convnext.report import metrics, notebook
from convnext.report.lines import LogLine
from convnext.text import printable
from convnext.training.progress.display import Display

_EVERY = 1.0  # seconds between updates of the bar and the numbers
_REST = 20  # times what a drawing of the curves took passes before the next: they take at most 5 % of a processor
_MAX_LINES = 12  # messages shown, the last ones


def open_display(console: Console, title: str, headline: str, lines: Callable[[], Sequence[LogLine]]) -> Display:
    """Return the display for a console: in a notebook one with curves, elsewhere a bar or plain lines.

    Args:
        console: where to show it.
        title: the run's name.
        headline: the metric to draw.
        lines: returns the lines of metrics.jsonl; called once the run has begun.
    """
    return NotebookDisplay(console, title, headline, lines) if console.is_jupyter and not console.quiet else Display(console)


class NotebookDisplay(Display):
    """Shows a run in one output of a cell, which it updates. Arguments as for `open_display`."""

    def __init__(self, console: Console, title: str, headline: str, lines: Callable[[], Sequence[LogLine]]) -> None:
        from IPython.display import HTML, DisplayHandle

        super().__init__(console)
        self.title, self.headline, self.lines, self.html = title, headline, lines, HTML
        self.handle, self.is_shown = DisplayHandle(), False
        self.messages: list[str] = []
        self.lead, self.done, self.total = "", 0, 0
        self.cards: dict[str, str] = {}
        self.curves: list[str] = []
        self.updated_at = self.draw_after = 0.0

    def begin(self, total: int, done: int) -> None:
        super().begin(total, done)
        self.total, self.done = total, done

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._draw()
        self._update()

    def step(self, step: int, epoch: int, **values: float) -> None:
        self.clock.step(step)
        self.keep(values)
        self.done = step
        self._show(f"epoch {epoch} · step {step} of {self.total} · {self.words()}")

    def evaluating(self, done: int, total: int) -> None:
        self._show(f"validation: {done} of {total} images")

    def evaluated(self, epoch: float, message: str, **values: float) -> None:
        self.cards = {f"{metrics.label(key)} after epoch {round(epoch, 2):g}": metrics.value(key, value) for key, value in values.items()}
        self.lead = f"epoch {round(epoch, 2):g} · step {self.done} of {self.total} · {self.clock.words()}"
        self._draw()
        self._update()

    def report(self, message: str) -> None:
        self.messages = [*self.messages, printable(message)][-_MAX_LINES:]
        self._update()

    def _show(self, lead: str) -> None:
        self.lead, now = f"{lead} · {self.clock.words()}", time.monotonic()
        if now < self.updated_at + _EVERY:
            return
        if now >= self.draw_after:
            self._draw()
        self._update()

    def _draw(self) -> None:
        from convnext.report import plots  # loads Matplotlib

        begun, lines = time.monotonic(), self.lines()
        if lines:
            self.curves = plots.curves(lines, self.headline)[:3]
        self.draw_after = time.monotonic() + _REST * (time.monotonic() - begun)

    def _update(self) -> None:
        done = self.done / self.total if self.total else None
        output = self.html(notebook.result(self.title, self.lead, self.cards, self.curves, done, self.messages))
        if self.is_shown:
            self.handle.update(output)
        else:
            self.handle.display(output)
        self.is_shown, self.updated_at = True, time.monotonic()
