"""The signals that stop a run."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from convnext.data.loader import STOP_SIGNALS
from convnext.errors import ConvnextError


class StoppedError(ConvnextError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130


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
