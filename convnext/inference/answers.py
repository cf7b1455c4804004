"""What comes of an image, and what takes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from convnext.inference.inputs import Item
from convnext.tasks.base import ClassIds, Json, MaskLook, Prediction

Done = dict[str, str | None]  # image → the reason why it could not be predicted, or None


@dataclass(frozen=True, eq=False)
class Answer:
    """The result for an image: an error, or the fields that the outputs need."""

    item: Item
    error: str | None = None
    prediction: Prediction | None = None
    features: np.ndarray | None = None  # float32 (C,)
    image: Image.Image | None = None
    size: tuple[int, int] | None = None  # height and width of the image, of an answer without an error

    @property
    def predicted(self) -> Prediction:
        """The prediction of an answer that has one."""
        assert self.prediction is not None
        return self.prediction


class Output(Protocol):
    """A file, a folder or a stream that answers go to."""

    needs: frozenset[str]  # fields of an answer

    @property
    def done(self) -> Done | None: ...  # the images that it holds; None if it keeps no record
    def write(self, answers: Sequence[Answer]) -> None: ...
    def finish(self) -> None: ...  # after the last `write`


class PredictsFor(Protocol):
    """What an output asks of a predictor."""

    task: str
    classes: list[str]
    class_ids: ClassIds | None
    options: dict[str, object]  # of its task


@runtime_checkable
class MaskPrediction(Prediction, Protocol):
    """A prediction with a class for every pixel."""

    def shares(self, top: int | None = None) -> Json: ...
    def png(self, look: MaskLook = "values") -> bytes: ...
