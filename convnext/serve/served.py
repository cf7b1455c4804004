"""A model on the service: its network, the queues of its requests, and what it may hold in memory."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL.Image import Image
from starlette.exceptions import HTTPException
from torch import nn

from convnext import tasks
from convnext.data.deep import DeepImage
from convnext.data.images import Reading
from convnext.explain import activation_maps
from convnext.inference.fingerprint import fingerprint_of
from convnext.inference.predictor import Predictor
from convnext.serve.batching import Batcher, UnwantedError, WorkerThread
from convnext.serve.limits import Limits, PixelBudget
from convnext.serve.watched import Watched
from convnext.tasks.base import Json, Prediction
from convnext.tasks.prepared import Prepared
from convnext.tasks.shared import prepare

Opened = Image | DeepImage
MapRequest = tuple[Opened, str | None]  # an image, and the class to explain; None for the likeliest

_PIXELS = 64_000_000  # of the images that are decoded for a model at once: five from a telephone's camera


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


@dataclass(frozen=True)
class LoadedVersion:
    """A network that was loaded for a model.

    Attributes:
        predictor: the network as it is. It draws activation maps.
        fast: predicts: the predictor itself, or what `optimize` made from it.
    """

    predictor: Predictor[Prediction]
    fast: Predictor[Prediction]


class ServedModel:
    """A version of a model on the service, with a queue for predictions and, if it has activation maps, one for those."""

    def __init__(
        self, name: str, version: LoadedVersion, limits: Limits, batch_size: int, max_wait: float, observe: Callable[[int], object]
    ) -> None:
        self.name, self.predictor, self._fast, self._limits = name, version.predictor, version.fast, limits
        self._transform = self.predictor.preprocessing.transform()
        self.options = [name for name in tasks.get(self.predictor.task).options if self._why_not(name) is None]
        commit = re.search(r"@([0-9a-f]{40})\b", self.predictor.source or "")
        self.weights: Json = {
            "revision": commit[1] if commit else None,
            "digest": f"sha256:{fingerprint_of(self.predictor, {}).weights}",
        }
        self.reading = Reading(self.predictor.reading.channels, limits.max_pixels)
        self.requests = 0  # that were given this version and are not answered yet
        # Not black or white: of either, a network's outputs may be less than usual.
        blank = DeepImage(np.full((self.reading.channels, 64, 64), 128, np.uint8), "blank", 255)
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
        if activation_maps.can_explain(self.predictor):
            self.maps = Batcher(self._explain, (blank, None), batch_size=1, max_wait=max_wait, queue=limits.queue)
        self.batchers: list[WorkerThread] = [self.predictions, *([] if self.maps is None else [self.maps])]
        self.budgets = {batcher: self._decode_budget(batcher) for batcher in self.batchers}

    def start(self) -> None:
        """Start to warm up."""
        for batcher in self.batchers:
            batcher.start()

    def close(self) -> None:
        """Let the waiting requests be answered, then the threads end."""
        for batcher in self.batchers:
            batcher.close()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count a request, so that this version does not end before it is answered."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def prepare(self, image: Opened) -> Prepared:
        """Return the image as the network takes it. The decoding threads call this, so that the network's thread only computes."""
        return prepare(image, self._transform)

    def _decode_budget(self, batcher: WorkerThread) -> PixelBudget:
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

    def _predict(self, items: list[PredictRequest], check: Callable[[], None]) -> Sequence[Prediction | Exception]:
        predictor, found = copy.copy(self._fast), dict[int, Prediction | Exception]()
        predictor.model = cast(nn.Module, Watched(predictor.model, check))
        bounds = {"max_pixels": self._limits.mask_pixels, "check": check}
        for options in dict.fromkeys(item.options for item in items):
            indices = [index for index, item in enumerate(items) if item.options == options]
            arguments = options.given() | {name: value for name, value in bounds.items() if name in self.options}
            try:
                found |= zip(indices, predictor.infer([items[index].image for index in indices], **arguments), strict=True)
            except UnwantedError:
                raise
            except Exception as error:  # the answers to requests with other options stay
                found |= dict.fromkeys(indices, error)
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
        return self.predictions.ready.is_set() and self.has_tried

    @property
    def has_tried(self) -> bool:
        """Whether it has tried to answer a first image."""
        return all(batcher.warmed_up.is_set() for batcher in self.batchers)

    def head(self) -> Json:
        """Return what each answer says of the model: its name, its task, and which weights these are."""
        return {"model": self.name, "task": self.predictor.task, "weights": self.weights}

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
            "weights": self.weights,
        }
