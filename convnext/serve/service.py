"""From a request to a network and back: read, decode, wait for the batch, or give up."""

import asyncio
import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from PIL.Image import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from torch import nn

from convnext import tasks
from convnext.data.deep import DeepImage
from convnext.data.images import Reading
from convnext.errors import ConvnextError, NotFiniteError, TooLargeError, nearest
from convnext.explain import activation_maps
from convnext.inference.predictor import Predictor
from convnext.serve.batching import Batcher, ItemT, QueueFullError, ValueT, WorkerThread
from convnext.serve.bodies import content_of
from convnext.serve.limits import CLIENT_GONE, Limits, PixelBudget, byte_budget, decoded, pixels_in, read_body
from convnext.serve.metrics import Metrics
from convnext.serve.watched import Watched
from convnext.tasks.base import Json, Prediction
from convnext.tasks.prepared import Prepared
from convnext.tasks.shared import prepare

ResultT = TypeVar("ResultT")
Opened = Image | DeepImage
MapRequest = tuple[Opened, str | None]  # an image, and the class to explain; None for the likeliest

_PIXELS = 64_000_000  # of the images that are decoded for a model at once: five from a telephone's camera
_CLOSING = 2.0  # seconds that threads have to end when no request waits for their work any more


@dataclass(frozen=True)
class RequestOptions:
    """Options of a request that only some models have; None is the task's default."""

    masks: bool | None = None
    threshold: float | None = None
    nms: float | None = None
    class_agnostic: bool | None = None
    classes: str | None = None
    coverage: float | None = None
    unknown: bool | None = None

    def given(self) -> dict[str, object]:
        """Return the options that are not the default: keyword arguments of the task's `infer`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class PredictRequest:
    """An image for the network, with options."""

    image: Prepared
    options: RequestOptions = RequestOptions()


class ServedModel:
    """A network on the service, with a queue for predictions and, if it has activation maps, one for those.

    `fast` predicts: the predictor itself, or what `optimize` made from it. Activation maps need the original.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor[Prediction],
        fast: Predictor[Prediction],
        limits: Limits,
        batch_size: int,
        max_wait: float,
        metrics: Metrics,
    ) -> None:
        self.name, self.predictor, self._fast, self._transform = name, predictor, fast, predictor.preprocessing.transform()
        self._limits = limits
        self.options = [name for name in tasks.get(predictor.task).options if self._why_not(name) is None]
        # Not black or white: of either, a network's outputs may be less than usual.
        blank = DeepImage(np.full((predictor.reading.channels, 64, 64), 128, np.uint8), "blank", 255)
        observe = metrics.watch(name, lambda: self.predictions.admitted)
        self.predictions: Batcher[PredictRequest, Prediction] = Batcher(
            self._predict,
            PredictRequest(self.prepare(blank)),
            batch_size=batch_size,
            max_wait=max_wait,
            queue=limits.queue,
            pixels=max(_PIXELS, limits.max_pixels),
            observe=observe,
        )
        self.maps: Batcher[MapRequest, Image] | None = None
        if activation_maps.can_explain(predictor):
            self.maps = Batcher(self._explain, (blank, None), batch_size=1, max_wait=max_wait, queue=limits.queue)
        self.batchers: list[WorkerThread] = [self.predictions, *([] if self.maps is None else [self.maps])]

    def prepare(self, image: Opened) -> Prepared:
        """Return the image as the network takes it. The decoding threads call this, so that the network's thread only computes."""
        return prepare(image, self._transform)

    def decode_budget(self, batcher: WorkerThread) -> PixelBudget:
        """Return the budget for decoded images, those in the running batch included; further images wait undecoded.

        For a GPU the next batch is decoded beside the running one. On a CPU the threads of the network wait for the slowest at the end
        of every layer, so that decoding beside it would cost twice: there the next batch is decoded after the last.
        """
        batches = 1 if self._fast.device.type == "cpu" else 2
        return PixelBudget(batches * batcher.batch_size, batches * max(_PIXELS, self._limits.max_pixels))

    def check(self, options: RequestOptions) -> None:
        """Raise HTTPException (422) for an option that the network has no answer to."""
        for name, value in options.given().items():
            if (reason := self._why_not(name, value)) is not None:
                raise HTTPException(422, f"{self.name} can't answer {reason}")

    def _why_not(self, option: str, value: object = None) -> str | None:
        one = self.predictor
        return tasks.get(one.task).why_not(option, value, one.model, one.calibration, one.classes)

    def _predict(self, items: list[PredictRequest], check: Callable[[], None]) -> Sequence[Prediction]:
        predictor, found = copy.copy(self._fast), dict[int, Prediction]()
        predictor.model = cast(nn.Module, Watched(predictor.model, check))
        bounds = {"max_pixels": self._limits.mask_pixels, "check": check}
        for options in dict.fromkeys(item.options for item in items):
            indices = [index for index, item in enumerate(items) if item.options == options]
            arguments = options.given() | {name: value for name, value in bounds.items() if name in self.options}
            found |= zip(indices, predictor.infer([items[index].image for index in indices], **arguments), strict=True)
        return [found[index] for index in range(len(items))]

    def _explain(self, items: list[MapRequest], check: Callable[[], None]) -> list[Image]:
        return [activation_maps.draw(self.predictor, image, name) for image, name in items]

    @property
    def explains(self) -> bool:
        """Whether it has activation maps, and they did not fail when they were tried at the start."""
        return self.maps is not None and (self.maps.ready.is_set() or not self.maps.warmed_up.is_set())

    @property
    def ready(self) -> bool:
        """Whether it has answered a first image and tried its activation maps, which predictions do not need."""
        return self.predictions.ready.is_set() and all(batcher.warmed_up.is_set() for batcher in self.batchers)

    def to_json(self) -> Json:
        """Return what a client needs to know before it sends an image."""
        return {
            "name": self.name,
            "task": self.predictor.task,
            "classes": list(self.predictor.classes),
            "class_ids": self.predictor.class_ids,
            "options": [name for name in vars(RequestOptions()) if name in self.options],
            "explains": self.explains,
            "ready": self.ready,
        }


class Service:
    """Models, and the threads that decode for them. `fast` has predictors that predict in place of those of the same name."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor[Prediction]],
        fast: Mapping[str, Predictor[Prediction]],
        limits: Limits,
        batch_size: int,
        max_wait: float,
    ) -> None:
        self.limits, self.metrics = limits, Metrics()
        options = limits, batch_size, max_wait, self.metrics
        self.models = {name: ServedModel(name, one, fast.get(name, one), *options) for name, one in predictors.items()}
        self.bytes = byte_budget(limits)
        self.batchers = [batcher for model in self.models.values() for batcher in model.batchers]
        self.budgets: dict[object, PixelBudget] = {  # by batcher
            batcher: model.decode_budget(batcher) for model in self.models.values() for batcher in model.batchers
        }
        self.reading: dict[object, Reading] = {  # by batcher
            batcher: Reading(model.predictor.reading.channels, limits.max_pixels)
            for model in self.models.values()
            for batcher in model.batchers
        }
        self.decoding = set[Callable[[], object]]()  # the work of these threads
        # One PyTorch thread in each: else every one of them would split its small work among all processors.
        self.threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode", torch.set_num_threads, (1,))

    def start(self) -> None:
        """Start to warm up."""
        for batcher in self.batchers:
            batcher.start()

    def close(self) -> bool:
        """Answer the admitted requests, and end all threads. Returns whether all of them ended; it does not wait for a stuck one."""
        until = time.monotonic() + _CLOSING
        for batcher in self.batchers:
            batcher.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        ended = [batcher.join(max(0.0, until - time.monotonic())) for batcher in self.batchers]
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

    async def answer(
        self, request: Request, batcher: Batcher[ItemT, ValueT], item: Callable[[Opened], ItemT], encode: Callable[[ValueT], bytes]
    ) -> tuple[bytes, float]:
        """Return the content of the answer to a request, and the seconds that its batch took.

        Args:
            batcher: answers the image.
            item: makes from the image what the batcher takes. It runs outside the event loop.
            encode: makes from the batcher's value the content of the answer. It runs outside the event loop.

        Raises HTTPException: 408, 413, 415 and 422 as `read_body`, `content_of` and `pixels_in`, 422 for an image that the network can't
        take, 413 for too many pixels of masks, 500 for an output that is not finite, 503 if too many requests wait, 504 if it takes too
        long.
        """
        async with read_body(request, self.limits, self.bytes) as body:
            try:
                with batcher.admit():
                    work = asyncio.create_task(self._work(body, request.headers.get("content-type", ""), batcher, item, encode))
                    return await self._while_wanted(request, work)
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
        batcher: Batcher[ItemT, ValueT],
        item: Callable[[Opened], ItemT],
        encode: Callable[[ValueT], bytes],
    ) -> tuple[bytes, float]:
        budget, how = self.budgets[batcher], self.reading[batcher]
        async with budget.images:
            content, pixels = await self._in_thread(lambda: self._head(body, content_type))
            async with budget.pixels(pixels, batcher.deferred):
                taken = await self._in_thread(lambda: item(decoded(content, how)))
                answer = await asyncio.wrap_future(batcher.submit(taken, pixels))
                del taken
        return await self._in_thread(lambda: encode(answer.value)), answer.seconds

    def _head(self, body: bytes, content_type: str) -> tuple[bytes, int]:
        content = content_of(body, content_type)
        return content, pixels_in(content, self.limits)

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        """Return the result of a function that runs in one of the decoding threads."""

        def run() -> ResultT:
            self.decoding.add(work)
            try:
                return work()
            finally:
                self.decoding.discard(work)

        return await asyncio.get_running_loop().run_in_executor(self.threads, run)

    async def _while_wanted(self, request: Request, work: "asyncio.Task[tuple[bytes, float]]") -> tuple[bytes, float]:
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
