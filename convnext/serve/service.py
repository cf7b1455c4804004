"""From a request to a network and back: read, decode, wait for the batch, or give up."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import torch
from starlette.exceptions import HTTPException
from starlette.requests import Request

from convnext.errors import ConvnextError, NotFiniteError, TooLargeError, first_line, nearest
from convnext.serve.batching import Batcher, ItemT, QueueFullError, ValueT
from convnext.serve.bodies import content_of
from convnext.serve.limits import CLIENT_GONE, Limits, byte_budget, decoded, pixels_in, read_body
from convnext.serve.metrics import Metrics
from convnext.serve.served import LoadedVersion, Opened, ServedModel

log = logging.getLogger("convnext")

ResultT = TypeVar("ResultT")

_CLOSING = 2.0  # seconds that threads have to end when no request waits for their work any more
_POLL = 0.02  # seconds between two looks at what another thread has done


def _decoding_threads() -> ThreadPoolExecutor:
    """Return threads with one PyTorch thread in each: else every one of them would split its small work among all processors."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode", torch.set_num_threads, (1,))


class Service:
    """Models by name, and the threads that decode for them.

    Args:
        versions: of each model; the first is the default.
        limits: of requests.
        batch_size: the maximum number of images that go through a network at once.
        max_wait: seconds that an idle network waits for images that are on the way.
        load: loads a model again, by its name; None if that is not possible.
    """

    def __init__(
        self,
        versions: Mapping[str, LoadedVersion],
        limits: Limits,
        batch_size: int,
        max_wait: float,
        load: Callable[[str], LoadedVersion] | None = None,
    ) -> None:
        self.limits, self.metrics, self._load = limits, Metrics(), load
        self._make = partial(self._served, batch_size=batch_size, max_wait=max_wait)
        self.models = {name: self._make(name, version) for name, version in versions.items()}
        for name in versions:
            self.metrics.watch(name, partial(self._admitted, name))
        self._retiring = set[ServedModel]()
        self._reloading, self._tasks = set[str](), set[asyncio.Task[None]]()
        self.bytes = byte_budget(limits)
        self.decoding = set[Callable[[], object]]()  # the work of these threads
        # Each model has its own: else large images for one would keep those for another waiting.
        self.threads = {name: _decoding_threads() for name in versions}

    def _served(self, name: str, version: LoadedVersion, batch_size: int, max_wait: float) -> ServedModel:
        return ServedModel(name, version, self.limits, batch_size, max_wait, self.metrics.batches.labels(name).observe)

    def _admitted(self, name: str) -> int:
        return self.models[name].predictions.admitted

    def start(self) -> None:
        """Start to warm up."""
        for model in self.models.values():
            model.start()

    def close(self) -> bool:
        """Answer the admitted requests, and end all threads. Returns whether all of them ended; it does not wait for a stuck one."""
        until = time.monotonic() + _CLOSING
        models = [*self.models.values(), *self._retiring]
        for model in models:
            model.close()
        for threads in self.threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        ended = [batcher.join(max(0.0, until - time.monotonic())) for model in models for batcher in model.batchers]
        while self.decoding and time.monotonic() < until:
            time.sleep(0.01)
        return all(ended) and not self.decoding

    def model(self, name: str | None) -> ServedModel:
        """Return the model of that name, or the first. Raises HTTPException (404)."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise HTTPException(404, f"unknown model {name!r}{nearest(name, self.models)}")
        return self.models[name]

    async def reload(self, name: str) -> ServedModel:
        """Load a model again beside its present version, which answers until the new one has answered a first image, and ends then.

        Raises HTTPException: 404 for an unknown model, 409 while it is loaded already, 500 if the new version can't be loaded or does not
        answer; the present version then stays.
        """
        before = self.model(name)
        if self._load is None:
            raise HTTPException(409, f"{name} was not loaded from anywhere, so it can't be loaded again")
        if name in self._reloading:
            raise HTTPException(409, f"{name} is being loaded already")
        self._reloading.add(name)
        try:
            fresh = self._make(name, await asyncio.to_thread(self._load, name))
            fresh.start()
            while not fresh.has_tried:
                await asyncio.sleep(_POLL)
            if not fresh.ready:
                fresh.close()
                raise ConvnextError("its network failed on a first image")
        except Exception as error:  # files and networks from outside raise whatever they like
            reason = first_line(error)
            log.error("%s was not loaded again: %s; its present version stays", name, reason)
            raise HTTPException(500, f"{name} was not loaded again: {reason}; its present version stays") from error
        finally:
            self._reloading.discard(name)
        self.models[name] = fresh
        self._retiring.add(before)
        log.warning("%s was loaded again: weights %s", name, fresh.weights["digest"])
        self.keep(asyncio.create_task(self._retire(before)))
        return fresh

    async def reload_all(self) -> None:
        """Load all models again, one after the other. What fails is in the log."""
        for name in self.models:
            with suppress(HTTPException):
                await self.reload(name)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task until it is done; the event loop holds tasks weakly."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retire(self, model: ServedModel) -> None:
        """End a version once its last request is answered."""
        while model.requests:
            await asyncio.sleep(_POLL)
        model.close()
        self._retiring.discard(model)

    async def answer(
        self,
        request: Request,
        model: ServedModel,
        batcher: Batcher[ItemT, ValueT],
        item: Callable[[Opened], ItemT],
        encode: Callable[[ValueT], bytes],
    ) -> tuple[bytes, float]:
        """Return the content of the answer to a request, and the seconds that its batch took.

        Args:
            model: answers the request.
            batcher: the one of its queues that takes the image.
            item: makes from the image what the batcher takes. It runs outside the event loop.
            encode: makes from the batcher's value the content of the answer. It runs outside the event loop.

        Raises HTTPException: 408, 413, 415 and 422 as `read_body`, `content_of` and `pixels_in`, 422 for an image that the network can't
        take, 413 for too many pixels of masks, 500 for an output that is not finite, 503 if too many requests wait, 504 if it takes too
        long.
        """
        return await self._guarded(request, model, batcher, lambda body, kind: self._work(body, kind, model, batcher, item, encode))

    async def preview(self, request: Request, model: ServedModel, encode: Callable[[Opened], ResultT]) -> ResultT:
        """Return what `encode` makes of a request's image as the model's images are opened. Raises as `answer` does."""
        batcher = model.predictions

        async def paint(body: bytes, kind: str) -> ResultT:
            async with self._taken(body, kind, model, batcher, encode) as (painted, _):
                return painted

        return await self._guarded(request, model, batcher, paint)

    async def _guarded(
        self,
        request: Request,
        model: ServedModel,
        batcher: Batcher[ItemT, ValueT],
        work: Callable[[bytes, str], Coroutine[object, object, ResultT]],
    ) -> ResultT:
        """Return what `work` makes of the body and content type of a request, within the limits of requests. Raises as `answer` does."""
        with model.in_use():
            async with read_body(request, self.limits, self.bytes) as body:
                try:
                    with batcher.admit():
                        task = asyncio.create_task(work(body, request.headers.get("content-type", "")))
                        return await self._while_wanted(request, task)
                except QueueFullError as error:
                    raise HTTPException(503, "too many requests are waiting", {"Retry-After": "1"}) from error
                except NotFiniteError as error:
                    raise HTTPException(500, str(error)) from error
                except TooLargeError as error:
                    raise HTTPException(413, f"{error} (?threshold=0.5, ?masks=0)") from error
                except ConvnextError as error:
                    raise HTTPException(422, str(error)) from error

    async def _work(
        self,
        body: bytes,
        content_type: str,
        model: ServedModel,
        batcher: Batcher[ItemT, ValueT],
        item: Callable[[Opened], ItemT],
        encode: Callable[[ValueT], bytes],
    ) -> tuple[bytes, float]:
        async with self._taken(body, content_type, model, batcher, item) as (taken, pixels):
            answer = await asyncio.wrap_future(batcher.submit(taken, pixels))
            del taken
        return await self._in_thread(model, lambda: encode(answer.value)), answer.seconds

    @asynccontextmanager
    async def _taken(
        self, body: bytes, content_type: str, model: ServedModel, batcher: Batcher[ItemT, ValueT], take: Callable[[Opened], ResultT]
    ) -> AsyncIterator[tuple[ResultT, int]]:
        """Yield what `take` makes of the image of a body, in a decoding thread, and its pixels, which count until the context ends."""
        budget, how = model.budgets[batcher], model.reading
        async with budget.images:
            content, pixels = await self._in_thread(model, lambda: self._head(body, content_type))
            async with budget.pixels(pixels, batcher.deferred):
                yield await self._in_thread(model, lambda: take(decoded(content, how))), pixels

    def _head(self, body: bytes, content_type: str) -> tuple[bytes, int]:
        content = content_of(body, content_type)
        return content, pixels_in(content, self.limits)

    async def _in_thread(self, model: ServedModel, work: Callable[[], ResultT]) -> ResultT:
        """Return the result of a function that runs in one of the model's decoding threads."""

        def run() -> ResultT:
            self.decoding.add(work)
            try:
                return work()
            finally:
                self.decoding.discard(work)

        return await asyncio.get_running_loop().run_in_executor(self.threads[model.name], run)

    async def _while_wanted(self, request: Request, work: "asyncio.Task[ResultT]") -> ResultT:
        gone = asyncio.ensure_future(request.receive())  # the body is read: the next message is that the client disconnects
        try:
            await asyncio.wait({work, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise HTTPException(CLIENT_GONE, "the client has disconnected")
            raise HTTPException(504, f"no answer within {self.limits.timeout:g} seconds")
        finally:
            work.cancel()
            gone.cancel()
