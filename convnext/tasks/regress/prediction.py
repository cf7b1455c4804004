"""The number that a network predicts for an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.tasks.base import Json, OpenedImage
from convnext.tasks.classify.prediction import ClassifyPrediction, prepared_batch
from convnext.tasks.shared import require_finite


@dataclass(frozen=True, eq=False)
class ValuePrediction(ClassifyPrediction):
    """A number in the data's unit, `probabilities[0]` of the class "value"."""

    @property
    def value(self) -> float:
        """The number."""
        return float(self.probabilities[0])

    def to_json(self, top: int | None = None) -> Json:
        """Return `{"value": …}`."""
        return {"value": self.value}

    def to_text(self, top: int | None = None) -> str:
        """Return the number with five digits."""
        return f"{self.value:.5g}"

    def rows(self, top: int | None = None) -> list[Json]:
        """Return the one row of a table."""
        return [{"value": self.value}]

    def lines(self) -> list[str]:
        """Return what is written under a drawn image."""
        return [self.to_text()]


def values_of(model: nn.Module, images: Tensor, how: Preprocessing) -> Tensor:
    """Return the numbers (N, 1) float32, in the data's unit, for prepared images (N, 3, H, W).

    With `how.mirror` they are means over each image and its mirror image.
    """
    outputs: Tensor = model(images).float()
    if not isinstance(how, ClassifyPreprocessing):
        return outputs
    if how.mirror:
        mirrored: Tensor = model(images.flip(-1).contiguous(memory_format=torch.channels_last)).float()
        outputs = (outputs + mirrored) / 2
    mean, std = how.unit or (0.0, 1.0)
    return mean + std * outputs


@torch.inference_mode()
def infer(
    model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, classes: Sequence[str], device: torch.device
) -> list[ClassifyPrediction]:
    """Return the prediction for each image, of any sizes; `model` is in evaluation mode and on `device`. Raises NotFiniteError."""
    values = values_of(model, prepared_batch(images, preprocessing, device), preprocessing)
    return [ValuePrediction(row, classes) for row in require_finite(values.cpu())]
