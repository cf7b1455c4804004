"""Dynamic batching: what many requests bring goes through a network together, on one thread a network."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from convnext.errors import ConvnextError

log = logging.getLogger("convnext")


class QueueFullError(Exception):
    """As many wait as may."""


class UnwantedError(Exception):
    """Nobody waits for the batch any more."""


@dataclass(frozen=True)
class Answer:
    """What became of an item, and the seconds that its batch took."""

    value: Any
    seconds: float


class _Job(Future[Answer]):
    """What waits for its answer. Cancelled while its batch runs, it can't be taken out, but need not be answered."""

    def __init__(self, item: Any, pixels: int) -> None:
        super().__init__()
        self.item, self.pixels, self.is_wanted = item, pixels, True

    def cancel(self) -> bool:
        self.is_wanted = False
        return super().cancel()


class Batcher:
    """Answers items in batches, in the order in which they come, on a thread of its own.

    A batch goes as soon as it is full, as soon as nobody else is on the way to join it (so a lone request is not held up), or
    when the network has had nothing to do but to wait for the rest for `max_wait` seconds. Where a batch fails, its items are
    tried one by one: each gets its own answer or its own exception. A batch that nobody waits for is given up.

    Args:
        infer: items, and a function to call between steps that take long, to as many values. The function raises UnwantedError
            when the batch is to be given up.
        warm_up: an item to try before all others; `ready` is set when that went well.
        batch_size: the most that `infer` gets at once.
        pixels: the most that the items of a batch have together, if it has more than one.
        queue: how many may wait beside those of the running batch.
        observe: told the size of every batch.
    """

    def __init__(
        self,
        infer: Callable[[list[Any], Callable[[], None]], Sequence[Any]],
        warm_up: Any,
        *,
        batch_size: int,
        max_wait: float,
        queue: int,
        pixels: float = float("inf"),
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._infer, self._warm_up, self._observe = infer, warm_up, observe
        self.batch_size, self.pixels, self.max_wait, self.most = batch_size, pixels, max_wait, queue + batch_size
        self.inside = 0  # requests that were let in and are not answered yet
        self._held_up = 0  # of these, for others to be answered
        self.ready, self.warmed_up = threading.Event(), threading.Event()
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Warm up, then answer."""
        self._thread.start()

    def close(self) -> None:
        """Have what is there answered, then the thread end; see `join`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end, at most so long; whether it did."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue while a request is worked on. Raises QueueFullError. For one thread: that of the event loop."""
        if self.inside >= self.most:
            raise QueueFullError
        self._count(1, 0)
        try:
            yield
        finally:
            self._count(-1, 0)

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """While a request that was let in waits for others to be answered: no batch waits for it."""
        self._count(0, 1)
        try:
            yield
        finally:
            self._count(0, -1)

    def _count(self, inside: int, held_up: int) -> None:
        with self._changed:  # what waits in the batch may have waited for this one
            self.inside += inside
            self._held_up += held_up
            self._changed.notify_all()

    def submit(self, item: Any, pixels: int = 0) -> Future[Answer]:
        """The answer to come. Cancelled before its batch began it costs nothing; a batch of which all are cancelled is given up."""
        job = _Job(item, pixels)
        job.add_done_callback(self._forget_cancelled)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def _forget_cancelled(self, future: Future[Answer]) -> None:
        # At once, not when its turn comes: a client that sends and hangs up again and again would fill the memory.
        if future.cancelled():
            with self._changed:
                self._jobs = deque(job for job in self._jobs if job is not future)

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # of this thread; where others ask for fewer, new threads get fewer
        try:
            self._infer([self._warm_up], self._check_open)
            self.ready.set()
        except UnwantedError:
            pass
        except ConvnextError as error:
            log.error("the network failed on its first image; the service stays not ready: %s", error)
        except Exception:
            log.exception("the network failed on its first image; the service stays not ready")
        self.warmed_up.set()
        while self._answer_next():
            pass

    def _check_open(self) -> None:
        if self._closed:
            raise UnwantedError

    def _answer_next(self) -> bool:
        # A function of its own, so that no variable keeps the last batch's images while the next is waited for.
        jobs = self._next_batch()
        self._answer([job for job in jobs if job.set_running_or_notify_cancel()])
        return bool(jobs)

    def _next_batch(self) -> list[_Job]:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return []
                # Not from when the first came: what waited behind a batch would then go without those that are decoded since.
                self._changed.wait_for(self._is_complete, self.max_wait)
                if self._jobs:  # they may all have been cancelled
                    return [self._jobs.popleft() for _ in range(self._fitting())]

    def _is_complete(self) -> bool:
        return self._closed or len(self._jobs) >= min(self.batch_size, self.inside - self._held_up) or self._fitting() < len(self._jobs)

    def _fitting(self) -> int:
        """How many of those that wait make up the next batch."""
        pixels = 0
        for count, job in enumerate(self._jobs):
            pixels += job.pixels
            if count and (count == self.batch_size or pixels > self.pixels):
                return count
        return len(self._jobs)

    def _answer(self, jobs: list[_Job]) -> None:
        if not jobs:
            return

        def check() -> None:
            if not any(job.is_wanted for job in jobs):
                raise UnwantedError

        started = time.monotonic()
        try:
            check()
            values = self._infer([job.item for job in jobs], check)
        except Exception as error:
            if len(jobs) == 1 or isinstance(error, UnwantedError):
                for job in jobs:
                    job.set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        seconds = time.monotonic() - started
        self._observe(len(jobs))
        for job, value in zip(jobs, values, strict=True):
            job.set_result(Answer(value, seconds))
