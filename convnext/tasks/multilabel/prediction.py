"""The set of classes of an image, with the probability of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.tasks.base import Json
from convnext.tasks.classify.known import KnownOptions, network_for, novelties
from convnext.tasks.classify.prediction import ClassifyPrediction, ClassProbability, NoveltyAnswer, class_rows, prepared_batch, words
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shared import require_finite

THRESHOLD = 0.5  # the probability from which on an image has a class
_EPS = 1e-7  # of a probability whose logit is taken


class MultilabelAnswer(NoveltyAnswer):
    """A `MultilabelPrediction` as plain values; lists have the most probable first."""

    labels: list[ClassProbability]
    top: list[ClassProbability]


@dataclass(frozen=True, eq=False, repr=False)
class MultilabelPrediction(ClassifyPrediction):
    """The probabilities (C,) of the classes, each of its own: they do not add up to 1."""

    def labels(self) -> list[tuple[str, float]]:
        """Return the classes that the image has, with their probabilities, the most probable first."""
        return [(name, probability) for name, probability in self.top(len(self.classes)) if probability >= THRESHOLD]

    def to_json(self, top: int | None = None) -> Json:
        """Return `labels`, the classes that the image has, and `top`, the `top` most probable ones, five by default."""
        return {"labels": class_rows(self.labels())} | super().to_json(top)

    def to_text(self, top: int | None = None) -> str:
        """Return the classes that the image has, or with `top` so many of the most probable ones, on one line."""
        shown = self.labels() if top is None else self.top(top)
        return (words(shown) or f"none; {words(self.top())}") + self.novelty_text()

    def rows(self, top: int | None = None) -> list[Json]:
        """Return a row of a table for each class that the image has, or with `top` for so many of the most probable ones."""
        return [row | self.novelty_json() for row in class_rows(self.labels() if top is None else self.top(top))]

    def note(self) -> str:
        """Return the classes that the image has."""
        return self.to_text()


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor, how: Preprocessing) -> Tensor:
    """Return the logits (N, C) for prepared images (N, 3, H, W); with `how.mirror` of the mean probability with the mirror image."""
    logits = model(images)
    if not (isinstance(how, ClassifyPreprocessing) and how.mirror):
        return logits
    mirrored = model(images.flip(-1).contiguous(memory_format=torch.channels_last))
    return ((logits.float().sigmoid() + mirrored.float().sigmoid()) / 2).logit(_EPS)


@torch.inference_mode()
def infer(
    model: nn.Module,
    images: Sequence[OpenedImage],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    options: KnownOptions,
) -> list[ClassifyPrediction]:
    """Return the prediction for each image, of any sizes; `model` is in evaluation mode and on `device`. Raises NotFiniteError."""
    network = network_for(model, options)
    logits = logits_of(network, prepared_batch(images, preprocessing, device), preprocessing)
    rows = require_finite(logits.float().sigmoid().cpu())
    known = zip(rows, novelties(network, len(rows), options), strict=True)
    return [MultilabelPrediction(row, classes, novelty=novelty) for row, novelty in known]
