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

log = logging.getLogger("convnext")


class QueueFullError(Exception):
    """As many wait as may."""


@dataclass(frozen=True)
class Answer:
    """What became of an item, and the seconds that its batch took."""

    value: Any
    seconds: float


@dataclass(frozen=True)
class _Job:
    item: Any
    future: "Future[Answer]"


class Batcher:
    """Answers items in batches, in the order in which they come, on a thread of its own.

    A batch goes as soon as it is full, as soon as nobody else is on the way to join it (so a lone request is not held up), or
    when the network has had nothing to do but to wait for the rest for `max_wait` seconds. Where a batch fails, its items are
    tried one by one: each gets its own answer or its own exception.

    Args:
        infer: items to as many values.
        warm_up: an item to try before all others; `ready` is set when that went well.
        batch_size: the most that `infer` gets at once.
        queue: how many may wait beside those of the running batch.
        observe: told the size of every batch.
    """

    def __init__(
        self,
        infer: Callable[[list[Any]], Sequence[Any]],
        warm_up: Any,
        *,
        batch_size: int,
        max_wait: float,
        queue: int,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._infer, self._warm_up, self._observe = infer, warm_up, observe
        self.batch_size, self.max_wait, self.most = batch_size, max_wait, queue + batch_size
        self.inside = 0  # requests that were let in and are not answered yet
        self.ready = threading.Event()
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Warm up, then answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer what is there, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue while a request is worked on. Raises QueueFullError. For one thread: that of the event loop."""
        if self.inside >= self.most:
            raise QueueFullError
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def submit(self, item: Any) -> "Future[Answer]":
        """The answer to come. A future that is cancelled before its batch began costs nothing."""
        future: Future[Answer] = Future()
        future.add_done_callback(self._forget_cancelled)
        with self._changed:
            self._jobs.append(_Job(item, future))
            self._changed.notify()
        return future

    def _forget_cancelled(self, future: "Future[Answer]") -> None:
        # At once, not when its turn comes: a client that sends and hangs up again and again would fill the memory.
        if future.cancelled():
            with self._changed:
                self._jobs = deque(job for job in self._jobs if job.future is not future)

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # of this thread; where others ask for fewer, new threads get fewer
        try:
            self._infer([self._warm_up])
            self.ready.set()
        except Exception:
            log.exception("the network failed on its first picture; the service stays not ready")
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        # A function of its own, so that no variable keeps the last batch's pictures while the next is waited for.
        jobs = self._next_batch()
        self._answer([job for job in jobs if job.future.set_running_or_notify_cancel()])
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
                    return [self._jobs.popleft() for _ in range(min(self.batch_size, len(self._jobs)))]

    def _is_complete(self) -> bool:
        return self._closed or len(self._jobs) >= min(self.batch_size, self.inside)

    def _answer(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        started = time.monotonic()
        try:
            values = self._infer([job.item for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        seconds = time.monotonic() - started
        self._observe(len(jobs))
        for job, value in zip(jobs, values, strict=True):
            job.future.set_result(Answer(value, seconds))
