"""What a user sees of a run on standard error, a live bar on a terminal and plain lines elsewhere, and the signals that stop it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convnext.data.loader import STOP_SIGNALS
from convnext.errors import ConvnextError
from convnext.text import printable


class StoppedError(ConvnextError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130


class Display:
    """Shows steps, images per second, loss, accuracy and the time left.

    Args:
        console: where to show it.
    """

    LINE_EVERY = 10.0  # seconds between plain lines

    def __init__(self, console: Console) -> None:
        self.console = console
        self.values: dict[str, str] = {}
        columns = (TextColumn("{task.fields[what]}"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[values]}"))
        self.bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)

    def begin(self, total: int, done: int) -> None:
        """Begin with a run of `total` steps, `done` of which were made before it was resumed."""
        self.total, self.begun_at, self.begun, self.printed_at = total, done, time.monotonic(), time.monotonic()
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
        self.values |= {key: _FORMATS[key].format(value) for key, value in values.items() if key in _FORMATS}
        if self.console.is_terminal:
            self.bar.update(self.task, completed=step, what=f"epoch {epoch}", values=" · ".join(self.values.values()))
        elif time.monotonic() - self.printed_at >= self.LINE_EVERY:
            self.printed_at = time.monotonic()
            self.report(f"epoch {epoch} · step {step} of {self.total} · {' · '.join(self.values.values())} · {self._left(step)}")

    def evaluated(self, epoch: float, message: str, **values: float) -> None:
        """Report an evaluation; `values` stay shown, as in `step`."""
        self.values |= {key: _FORMATS[key].format(value) for key, value in values.items() if key in _FORMATS}
        self.report(f"epoch {round(epoch, 2):g} · validation: {message}")

    def report(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def _left(self, step: int) -> str:
        seconds = round((time.monotonic() - self.begun) / max(step - self.begun_at, 1) * (self.total - step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d} left"


class Speed:
    """Images per second, averaged over the last steps."""

    def __init__(self) -> None:
        self.clock, self.value = time.monotonic(), 0.0

    def update(self, images: int) -> float:
        """Return the speed after a step with so many images."""
        now = time.monotonic()
        this, self.clock = images / (now - self.clock), now
        self.value = 0.9 * self.value + 0.1 * this if self.value else this
        return round(self.value, 1)


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
    "top1": "accuracy {:.1f} %",
}


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield a list that becomes non-empty when SIGINT, SIGTERM or SIGHUP arrives. A second SIGINT stops at once, as usual.

    SIGHUP stays ignored where it is, as under nohup. On leaving, the handlers are those of before. Outside the main thread, where
    Python takes no handlers, signals do what they did.
    """
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {}
    for number in (signal.SIGINT, *STOP_SIGNALS):
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
            continue
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread
            break
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
