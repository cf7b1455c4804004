"""Dynamic batching: the images of many requests go through a network together, on one thread per network."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from convnext.errors import ConvnextError

log = logging.getLogger("convnext")


ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")


class QueueFullError(Exception):
    """The maximum number of requests is waiting."""


class UnwantedError(Exception):
    """No request waits for the batch any more."""


@dataclass(frozen=True)
class BatchAnswer(Generic[ValueT]):
    """The value for an item, and the seconds that its batch took."""

    value: ValueT
    seconds: float


class WorkerThread(Protocol):
    """A `Batcher` of whatever items."""

    batch_size: int
    ready: threading.Event  # the warm-up item was answered
    warmed_up: threading.Event  # the warm-up item was tried

    def start(self) -> None: ...
    def close(self) -> None: ...
    def join(self, seconds: float) -> bool: ...


class _Job(Future[BatchAnswer[ValueT]], Generic[ItemT, ValueT]):
    """An item that waits for its answer. Cancelled while its batch runs, it stays in the batch, but needs no answer."""

    def __init__(self, item: ItemT, pixels: int) -> None:
        super().__init__()
        self.item, self.pixels, self.is_wanted = item, pixels, True

    def cancel(self) -> bool:
        self.is_wanted = False
        return super().cancel()


class Batcher(Generic[ItemT, ValueT]):
    """Answers items in batches, in the order in which they come, on its own thread.

    A batch starts as soon as it is full, as soon as no further request is on the way (so a lone request does not wait), or
    when the network has been idle for `max_wait` seconds with items waiting. Items that fail together are tried one by one: each
    gets its own answer or its own exception. A batch that no request waits for any more is abandoned.

    Args:
        infer: takes items, and a function to call between long steps, and returns as many values, or the exception by which some of
            them failed. The function raises UnwantedError when the batch is to be abandoned.
        warm_up: an item to try before all others; `ready` is set if it was answered.
        batch_size: the maximum number of items that `infer` gets at once.
        max_wait: seconds that an idle network waits for a batch to fill.
        pixels: the maximum number of pixels of a batch with more than one item.
        queue: how many requests may wait beside those of the running batch.
        observe: called with the size of every batch.
    """

    def __init__(
        self,
        infer: Callable[[list[ItemT], Callable[[], None]], Sequence[ValueT | Exception]],
        warm_up: ItemT,
        *,
        batch_size: int,
        max_wait: float,
        queue: int,
        pixels: float = float("inf"),
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._infer, self._warm_up, self._observe = infer, warm_up, observe
        self.batch_size, self.pixels, self.max_wait, self.max_admitted = batch_size, pixels, max_wait, queue + batch_size
        self.admitted = 0  # requests that were accepted and are not answered yet
        self._deferred = 0  # those of them that wait for others to be answered
        self.ready, self.warmed_up = threading.Event(), threading.Event()
        self._jobs: deque[_Job[ItemT, ValueT]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Warm up, then answer."""
        self._thread.start()

    def close(self) -> None:
        """Let the waiting items be answered, then the thread end; see `join`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end, at most so many seconds. Returns whether it did."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request as admitted while it is worked on. Raises QueueFullError. Call it on one thread: that of the event loop."""
        if self.admitted >= self.max_admitted:
            raise QueueFullError
        self._count(1, 0)
        try:
            yield
        finally:
            self._count(-1, 0)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Mark an admitted request as waiting for others to be answered: no batch waits for it meanwhile."""
        self._count(0, 1)
        try:
            yield
        finally:
            self._count(0, -1)

    def _count(self, admitted: int, deferred: int) -> None:
        with self._changed:  # the next batch may be waiting for this request
            self.admitted += admitted
            self._deferred += deferred
            self._changed.notify_all()

    def submit(self, item: ItemT, pixels: int = 0) -> Future[BatchAnswer[ValueT]]:
        """Return the future answer. Cancel it before its batch starts to drop it; a batch of only cancelled items is abandoned."""
        job: _Job[ItemT, ValueT] = _Job(item, pixels)
        job.add_done_callback(self._forget_cancelled)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def _forget_cancelled(self, future: Future[BatchAnswer[ValueT]]) -> None:
        # At once, not when its turn comes: a client that sends and disconnects again and again would fill the memory.
        if future.cancelled():
            with self._changed:
                self._jobs = deque(job for job in self._jobs if job is not future)

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # of this thread: new threads get fewer if another thread asked for fewer
        try:
            (value,) = self._infer([self._warm_up], self._check_open)
            if isinstance(value, Exception):
                raise value
            self.ready.set()
        except UnwantedError:
            pass
        except ConvnextError as error:
            log.error("the network failed on its first image, so the service never becomes ready: %s", error)
        except Exception:
            log.exception("the network failed on its first image, so the service never becomes ready")
        self.warmed_up.set()
        while self._answer_next():
            pass

    def _check_open(self) -> None:
        if self._closed:
            raise UnwantedError

    def _answer_next(self) -> bool:
        # A separate function, so that no variable keeps the last batch's images while the thread waits for the next.
        jobs = self._next_batch()
        self._answer([job for job in jobs if job.set_running_or_notify_cancel()])
        return bool(jobs)

    def _next_batch(self) -> list[_Job[ItemT, ValueT]]:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return []
                # Counted from now, not from the first item: items that waited behind a batch would else start without those decoded since.
                self._changed.wait_for(self._is_complete, self.max_wait)
                if self._jobs:  # they may all have been cancelled
                    return [self._jobs.popleft() for _ in range(self._fitting())]

    def _is_complete(self) -> bool:
        return self._closed or len(self._jobs) >= min(self.batch_size, self.admitted - self._deferred) or self._fitting() < len(self._jobs)

    def _fitting(self) -> int:
        """Return how many of the waiting items make up the next batch."""
        pixels = 0
        for count, job in enumerate(self._jobs):
            pixels += job.pixels
            if count and (count == self.batch_size or pixels > self.pixels):
                return count
        return len(self._jobs)

    def _answer(self, jobs: list[_Job[ItemT, ValueT]]) -> None:
        if not jobs:
            return

        def check() -> None:
            if not any(job.is_wanted for job in jobs):
                raise UnwantedError

        started = time.monotonic()
        values: Sequence[ValueT | Exception]
        try:
            check()
            values = self._infer([job.item for job in jobs], check)
        except Exception as error:
            values = [error] * len(jobs)
        seconds = time.monotonic() - started
        answered = [(job, value) for job, value in zip(jobs, values, strict=True) if not isinstance(value, Exception)]
        if answered:
            self._observe(len(answered))
        for job, value in answered:
            job.set_result(BatchAnswer(value, seconds))
        for job, failed in zip(jobs, values, strict=True):
            if isinstance(failed, UnwantedError) or (isinstance(failed, Exception) and len(jobs) == 1):
                job.set_exception(failed)
            elif isinstance(failed, Exception):
                self._answer([job])
