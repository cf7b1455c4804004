"""What stands between a request and a network: reading, decoding, waiting, and giving up."""

import asyncio
import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import PIL.Image
import torch
from PIL.Image import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from convnext.data.deep import DeepImage
from convnext.errors import ConvnextError, NotFiniteError, TooLargeError, nearest
from convnext.explain import activation_maps
from convnext.serve.batching import Answer, Batcher, QueueFullError
from convnext.serve.bodies import content_of
from convnext.serve.limits import CLIENT_GONE, Limits, PixelRoom, decoded, pixels_in, read_body, room_for
from convnext.serve.metrics import Metrics
from convnext.serve.watched import Watched
from convnext.tasks.prediction import Prepared, prepare

Found = TypeVar("Found")

_BLANK = PIL.Image.new("RGB", (64, 64), "grey")
_PIXELS = 64_000_000  # of the images that are decoded for a model at once: five of a telephone's camera
_CLOSING = 2.0  # seconds that threads have to end when nobody waits for their work any more


@dataclass(frozen=True)
class Wish:
    """What a request asks of a detector beside its image; None: as it comes."""

    masks: bool | None = None
    threshold: float | None = None

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the task's `infer`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Asked:
    """An image for the network, and what is wished of it."""

    image: Prepared
    wish: Wish = Wish()


class Model:
    """A network on the service, with a queue for predictions and, where it has activation maps, one for those.

    `fast` predicts: the predictor itself or what `optimize` made of it. Activation maps need the original.
    """

    def __init__(self, name: str, predictor: Any, fast: Any, limits: Limits, batch_size: int, max_wait: float, metrics: Metrics) -> None:
        self.name, self.predictor, self._fast, self._transform = name, predictor, fast, predictor.preprocessing.transform()
        self._limits = limits
        observe = metrics.watch(name, lambda: self.predictions.inside)
        options: dict[str, Any] = {"max_wait": max_wait, "queue": limits.queue}
        blank, pixels = Asked(self.prepare(_BLANK)), max(_PIXELS, limits.max_pixels)
        self.predictions = Batcher(self._predict, blank, batch_size=batch_size, pixels=pixels, observe=observe, **options)
        self.maps: Batcher | None = None
        if activation_maps.can_explain(predictor):
            self.maps = Batcher(self._explain, (_BLANK, None), batch_size=1, **options)
        self.batchers = [one for one in (self.predictions, self.maps) if one is not None]

    def prepare(self, image: Image | DeepImage) -> Prepared:
        """What the network takes; for the threads that decode, so that the network's has only to compute."""
        return prepare(image, self._transform)

    def in_work(self, batcher: Batcher) -> PixelRoom:
        """Room for the images that are decoded at once, those in the batch that runs with them; the others wait as they were sent.

        They may be large. A GPU has its next batch decoded beside the running one. On a CPU, where each thread of the network waits for
        the slowest at the end of every layer, decoding beside it would cost twice: there the next batch is decoded after the last.
        """
        batches = 1 if self._fast.device.type == "cpu" else 2
        return PixelRoom(batches * batcher.batch_size, batches * max(_PIXELS, self._limits.max_pixels))

    def check(self, wish: Wish) -> None:
        """Raise HTTPException (422) for what the network's task does not have."""
        for name in wish.options():
            if self.predictor.task != "detect":
                raise HTTPException(422, f"{name} is for models that detect, and {self.name} does {self.predictor.task}")

    def _predict(self, items: list[Asked], check: Callable[[], None]) -> Sequence[Any]:
        one, found = copy.copy(self._fast), dict[int, Any]()
        one.model = Watched(one.model, check)
        for wish in dict.fromkeys(item.wish for item in items):
            places = [place for place, item in enumerate(items) if item.wish == wish]
            options = wish.options()
            if one.task == "detect":
                options |= {"most_pixels": self._limits.mask_pixels, "check": check}
            found |= zip(places, one.infer([items[place].image for place in places], **options), strict=True)
        return [found[place] for place in range(len(items))]

    def _explain(self, items: list[tuple[Image | DeepImage, str | None]], check: Callable[[], None]) -> list[Image]:
        return [activation_maps.draw(self.predictor, image, name) for image, name in items]

    @property
    def explains(self) -> bool:
        """Whether it has activation maps, which did not fail when they were tried at the start."""
        return self.maps is not None and (self.maps.ready.is_set() or not self.maps.warmed_up.is_set())

    @property
    def ready(self) -> bool:
        """Whether it has answered a first image, and its activation maps were tried: predictions can do without them."""
        return self.predictions.ready.is_set() and all(batcher.warmed_up.is_set() for batcher in self.batchers)

    def to_json(self) -> dict[str, Any]:
        """What a client may want to know before it sends an image."""
        return {
            "name": self.name,
            "task": self.predictor.task,
            "classes": list(self.predictor.classes),
            "class_ids": self.predictor.class_ids,
            "explains": self.explains,
            "ready": self.ready,
        }


class Service:
    """Models, and the threads that decode for them. `fast` has what predicts in the place of the predictor of that name."""

    def __init__(self, predictors: Mapping[str, Any], fast: Mapping[str, Any], limits: Limits, batch_size: int, max_wait: float) -> None:
        self.limits, self.metrics = limits, Metrics()
        options = limits, batch_size, max_wait, self.metrics
        self.models = {name: Model(name, one, fast.get(name, one), *options) for name, one in predictors.items()}
        self.room = room_for(limits)
        self.in_work = {batcher: model.in_work(batcher) for model in self.models.values() for batcher in model.batchers}
        self.decoding = set[Callable[[], Any]]()  # what these threads are at
        # One thread each: PyTorch would have every one of them split its small work among all processors.
        self.threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode", torch.set_num_threads, (1,))

    def start(self) -> None:
        """Begin to warm up."""
        for batcher in self.in_work:
            batcher.start()

    def close(self) -> bool:
        """Answer what was taken in, and end all threads; whether all of them ended, for one that is stuck is not waited for."""
        until = time.monotonic() + _CLOSING
        for batcher in self.in_work:
            batcher.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        ended = [batcher.join(max(0.0, until - time.monotonic())) for batcher in self.in_work]
        while self.decoding and time.monotonic() < until:
            time.sleep(0.01)
        return all(ended) and not self.decoding

    def model(self, name: str | None) -> Model:
        """The model of that name, or the first. Raises HTTPException (404)."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise HTTPException(404, f"no model is called {name!r}{nearest(name, self.models)}")
        return self.models[name]

    async def answer(
        self, request: Request, batcher: Batcher, item: Callable[[Image | DeepImage], Any], encode: Callable[[Any], bytes]
    ) -> tuple[bytes, float]:
        """What the network makes of the image in a request, and the seconds that its batch took.

        Args:
            item: from the image to what the batcher takes.
            encode: from what it gives to the content of the answer. Both run outside the event loop.

        Raises HTTPException: 408, 413, 415 and 422 as `read_body`, `content_of` and `pixels_in`, 422 for what the network can't
        take, 413 for too many pixels of masks, 500 for an output that is not finite, 503 when too many wait, 504 when it takes too long.
        """
        async with read_body(request, self.limits, self.room) as body:
            try:
                with batcher.place():
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
        self, body: bytes, content_type: str, batcher: Batcher, item: Callable[[Image | DeepImage], Any], encode: Callable[[Any], bytes]
    ) -> tuple[bytes, float]:
        room = self.in_work[batcher]
        async with room.images:
            content, pixels = await self._in_thread(lambda: self._head(body, content_type))
            async with room.pixels(pixels, batcher.held_up):
                taken = await self._in_thread(lambda: item(decoded(content)))
                answer: Answer = await asyncio.wrap_future(batcher.submit(taken, pixels))
                del taken
        return await self._in_thread(lambda: encode(answer.value)), answer.seconds

    def _head(self, body: bytes, content_type: str) -> tuple[bytes, int]:
        content = content_of(body, content_type)
        return content, pixels_in(content, self.limits)

    async def _in_thread(self, work: Callable[[], Found]) -> Found:
        """What a function gives, run in one of the threads that decode."""

        def run() -> Found:
            self.decoding.add(work)
            try:
                return work()
            finally:
                self.decoding.discard(work)

        return await asyncio.get_running_loop().run_in_executor(self.threads, run)

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
