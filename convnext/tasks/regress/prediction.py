"""The number that a network predicts for an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.report.notebook import Bar
from convnext.tasks.base import Json
from convnext.tasks.classify.known import KnownOptions, network_for, novelties
from convnext.tasks.classify.prediction import ClassifyPrediction, NoveltyAnswer, prepared_batch
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shared import require_finite


class ValueAnswer(NoveltyAnswer):
    """A `ValuePrediction` as plain values."""

    value: float


@dataclass(frozen=True, eq=False, repr=False)
class ValuePrediction(ClassifyPrediction):
    """A number in the data's unit, `probabilities[0]` of the class "value"."""

    @property
    def value(self) -> float:
        """The number."""
        return float(self.probabilities[0])

    def to_json(self, top: int | None = None) -> Json:
        """Return `{"value": …}`, and what a classifier's prediction has of a novelty."""
        return {"value": self.value} | self.novelty_json()

    def to_text(self, top: int | None = None) -> str:
        """Return the number with five digits."""
        return f"{self.value:.5g}{self.novelty_text()}"

    def rows(self, top: int | None = None) -> list[Json]:
        """Return the one row of a table."""
        return [self.to_json()]

    def bars(self) -> list[Bar]:
        """Return none: a number has no bounds."""
        return []

    def note(self) -> str:
        """Return the number."""
        return self.to_text()

    def lines(self) -> list[str]:
        """Return what is written under a drawn image."""
        return [self.to_text()]


def values_of(model: Callable[[Tensor], Tensor], images: Tensor, how: Preprocessing) -> Tensor:
    """Return the numbers (N, 1) float32, in the data's unit, for prepared images (N, 3, H, W).

    With `how.mirror` they are means over each image and its mirror image.
    """
    outputs = model(images).float()
    if not isinstance(how, ClassifyPreprocessing):
        return outputs
    if how.mirror:
        mirrored = model(images.flip(-1).contiguous(memory_format=torch.channels_last)).float()
        outputs = (outputs + mirrored) / 2
    mean, std = how.unit or (0.0, 1.0)
    return mean + std * outputs


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
    values = require_finite(values_of(network, prepared_batch(images, preprocessing, device), preprocessing).cpu())
    known = zip(values, novelties(network, len(values), options), strict=True)
    return [ValuePrediction(row, classes, novelty=novelty) for row, novelty in known]
