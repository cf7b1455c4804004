"""How long a run takes: its speed, and the time that passed and that is left."""

import time


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


class Clock:
    """The time since a run began or was resumed, and what is left of it.

    The first step of a session does not count: it starts the processes that load images, and may compile.
    """

    def __init__(self, total: int) -> None:
        self.total, self.begun = total, time.monotonic()
        self._first: tuple[int, float] | None = None  # the first step, and when it was done
        self._done = 0

    def step(self, step: int) -> None:
        """Note that `step` steps of `total` are done."""
        self._done = step
        self._first = self._first or (step, time.monotonic())

    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.begun

    def left(self) -> float | None:
        """Return the seconds that the other steps will take at the speed since the first one; None before the second."""
        if self._first is None or self._done <= self._first[0]:
            return None
        step, at = self._first
        return (time.monotonic() - at) / (self._done - step) * (self.total - self._done)

    def words(self) -> str:
        """Return both for people: "elapsed 4:38 · left 0:09"."""
        left = self.left()
        return f"elapsed {duration(self.elapsed())}" + ("" if left is None else f" · left {duration(left)}")


def duration(seconds: float) -> str:
    """Return a time as "4:38" or "1:04:38"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
