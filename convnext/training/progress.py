"""What a run shows while it goes on: a live bar on a terminal, plain lines elsewhere. All of it on standard error."""

import time
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convnext.text import printable


class Display:
    """Shows steps, images a second, loss, accuracy and the time left.

    Args:
        console: where to show it.
    """

    LINE_EVERY = 10.0  # seconds between plain lines

    def __init__(self, console: Console) -> None:
        self.console = console
        self.values: dict[str, str] = {}
        columns = (TextColumn("{task.fields[what]}"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
        self.bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)

    def begin(self, total: int, done: int) -> None:
        """The run has `total` steps, of which `done` were done before it was taken up."""
        self.total, self.begun_at, self.begun, self.told = total, done, time.monotonic(), time.monotonic()
        self.task = self.bar.add_task("", total=total, completed=done, what="training", told="")

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def step(self, step: int, epoch: int, **values: float) -> None:
        """Show that `step` steps are done; `values` replace those shown, keyed as in metrics.jsonl."""
        self.values |= {key: _FORMATS[key].format(value) for key, value in values.items() if key in _FORMATS}
        if self.console.is_terminal:
            self.bar.update(self.task, completed=step, what=f"epoch {epoch}", told=" · ".join(self.values.values()))
        elif time.monotonic() - self.told >= self.LINE_EVERY:
            self.told = time.monotonic()
            self.tell(f"epoch {epoch} · step {step} of {self.total} · {' · '.join(self.values.values())} · {self._left(step)}")

    def evaluated(self, epoch: int, told: str, **values: float) -> None:
        """Tell of an evaluation; `values` stay shown, as in `step`."""
        self.values |= {key: _FORMATS[key].format(value) for key, value in values.items() if key in _FORMATS}
        self.tell(f"epoch {epoch} · validation: {told}")

    def tell(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def _left(self, step: int) -> str:
        seconds = round((time.monotonic() - self.begun) / max(step - self.begun_at, 1) * (self.total - step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d} left"


class Unbreakable:
    """A text stream that may go away, as a terminal does when it is closed: what is written from then on is lost, no error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if there is still somewhere to."""
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_FORMATS = {
    "images_per_second": "{:.0f} images/s",
    "loss": "loss {:.3f}",
    "top1": "accuracy {:.1f} %",
}
