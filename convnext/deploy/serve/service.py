"""What stands between a request and a network: reading, decoding, waiting, and giving up."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import PIL.Image
import torch
from PIL.Image import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from convnext import tasks
from convnext.deploy import explain
from convnext.deploy.serve.batching import Answer, Batcher, QueueFullError
from convnext.deploy.serve.limits import CLIENT_GONE, Limits, picture_in, read_body, room_for
from convnext.deploy.serve.metrics import Metrics
from convnext.errors import ConvnextError, nearest
from convnext.tasks.predictions import Prepared, prepare

_BLANK = PIL.Image.new("RGB", (64, 64), "grey")


class Model:
    """A network on the service, with a queue for predictions and, where it has activation maps, one for those.

    `fast` predicts: the predictor itself or what `optimize` made of it. Activation maps need the original.
    """

    def __init__(self, name: str, predictor: Any, fast: Any, limits: Limits, batch_size: int, max_wait: float, metrics: Metrics) -> None:
        self.name, self.predictor, self._fast, self._transform = name, predictor, fast, predictor.preprocessing.transform()
        observe = metrics.watch(name, lambda: self.predictions.inside)
        options: dict[str, Any] = {"max_wait": max_wait, "queue": limits.queue}
        self.predictions = Batcher(self._predict, self.prepare(_BLANK), batch_size=batch_size, observe=observe, **options)
        self.maps: Batcher | None = None
        if explain.can_explain(predictor):
            self.maps = Batcher(self._explain, (_BLANK, None), batch_size=1, **options)
        self.batchers = [one for one in (self.predictions, self.maps) if one is not None]

    def prepare(self, picture: Image) -> Prepared:
        """What `predictions` takes; for the threads that decode, so that the network's has only to compute."""
        return prepare(picture, self._transform)

    def in_work(self, batcher: Batcher) -> int:
        """How many pictures are decoded at once, those in the batch that runs with them; the others wait as they were sent.

        They may be large. A GPU has its next batch decoded beside the running one. On a CPU, where each thread of the network waits for
        the slowest at the end of every layer, decoding beside it would cost twice: there the next batch is decoded after the last.
        """
        return batcher.batch_size * (1 if self._fast.device.type == "cpu" else 2)

    def _predict(self, pictures: list[Prepared]) -> Sequence[Any]:
        one = self._fast
        return tasks.get(one.task).infer(one.model, pictures, one.preprocessing, one.classes, one.device)

    def _explain(self, items: list[tuple[Image, str | None]]) -> list[Image]:
        return [explain.draw(self.predictor, picture, name) for picture, name in items]

    def to_json(self) -> dict[str, Any]:
        """What a client may want to know before it sends a picture."""
        return {
            "name": self.name,
            "task": self.predictor.task,
            "classes": list(self.predictor.classes),
            "explains": self.maps is not None,
            "ready": all(batcher.ready.is_set() for batcher in self.batchers),
        }


class Service:
    """Models, and the threads that decode for them. `fast` has what predicts in the place of the predictor of that name."""

    def __init__(self, predictors: Mapping[str, Any], fast: Mapping[str, Any], limits: Limits, batch_size: int, max_wait: float) -> None:
        self.limits, self.metrics = limits, Metrics()
        options = limits, batch_size, max_wait, self.metrics
        self.models = {name: Model(name, one, fast.get(name, one), *options) for name, one in predictors.items()}
        self.room = room_for(limits)
        self.decoded = {batcher: asyncio.Semaphore(model.in_work(batcher)) for model in self.models.values() for batcher in model.batchers}
        # One thread each: PyTorch would have every one of them split its small work among all processors.
        self.threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode", torch.set_num_threads, (1,))

    def start(self) -> None:
        """Begin to warm up."""
        for batcher in self.decoded:
            batcher.start()

    def close(self) -> None:
        """Answer what was taken in, and end all threads."""
        for batcher in self.decoded:
            batcher.close()
        self.threads.shutdown()

    def model(self, name: str | None) -> Model:
        """The model of that name, or the first. Raises HTTPException (404)."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise HTTPException(404, f"no model is called {name!r}{nearest(name, self.models)}")
        return self.models[name]

    async def answer(
        self, request: Request, batcher: Batcher, item: Callable[[Image], Any], encode: Callable[[Any], bytes]
    ) -> tuple[bytes, float]:
        """What the network makes of the picture in a request, and the seconds that its batch took.

        Args:
            item: from the picture to what the batcher takes.
            encode: from what it gives to the content of the answer. Both run outside the event loop.

        Raises HTTPException: 408, 413, 415 and 422 as `read_body` and `picture_in`, 422 for what the network can't take, 503
        when too many wait, 504 when it takes too long.
        """
        async with read_body(request, self.limits, self.room) as body:
            try:
                with batcher.place():
                    work = asyncio.create_task(self._work(body, request.headers.get("content-type", ""), batcher, item, encode))
                    return await self._while_wanted(request, work)
            except QueueFullError as error:
                raise HTTPException(503, "too many requests are waiting", {"Retry-After": "1"}) from error
            except ConvnextError as error:
                raise HTTPException(422, str(error)) from error

    async def _work(
        self, body: bytes, content_type: str, batcher: Batcher, item: Callable[[Image], Any], encode: Callable[[Any], bytes]
    ) -> tuple[bytes, float]:
        loop = asyncio.get_running_loop()
        async with self.decoded[batcher]:
            taken = await loop.run_in_executor(self.threads, lambda: item(picture_in(body, content_type, self.limits)))
            answer: Answer = await asyncio.wrap_future(batcher.submit(taken))
            del taken
        return await loop.run_in_executor(self.threads, encode, answer.value), answer.seconds

    async def _while_wanted(self, request: Request, work: "asyncio.Task[tuple[bytes, float]]") -> tuple[bytes, float]:
        gone = asyncio.ensure_future(request.receive())  # all of the body is read: what comes next is that the client hangs up
        try:
            await asyncio.wait({work, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise HTTPException(CLIENT_GONE, "the client is gone")
            raise HTTPException(504, f"no answer within {self.limits.timeout:g} seconds")
        finally:
            work.cancel()
            gone.cancel()
