"""Images with a number each: sources, their two parts, and samples."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from convnext.data.loader import Samples
from convnext.data.sources.base import ClassifySource, target_kind_of
from convnext.data.sources.open import open_values
from convnext.errors import ConvnextError, UsageError

# The task is a variant of classification, so its sources pass for a ClassifySource, with a float where that has an int.


def open_numbers(where: str, classes: Sequence[str] | None = None) -> ClassifySource:
    """Return the images that `where` names. Raises UsageError unless each has a number, ConvnextError if one is not finite."""
    source = cast("ClassifySource", open_values(where))
    if target_kind_of(source) != "value":
        raise UsageError(f"{where} has classes, and task regress learns a number for each image: take task=classify, or other data")
    for index in np.flatnonzero(~np.isfinite(values_of(source)))[:1].tolist():
        raise ConvnextError(f"the value of {source.name(index)} is {source.label(index)}: give a number, or remove the image")
    return source


def values_of(source: ClassifySource) -> np.ndarray:
    """Return the number of each image, float64 (images,)."""
    return np.array([source.label(index) for index in range(len(source))], dtype=float)


class ValueSamples(Samples):
    """Images with float32 targets (1,): their numbers."""

    def prepare(self, image: Any, index: int) -> tuple[Tensor, Tensor]:
        """Return the image at a position of the source and its target."""
        return self.transform(image), torch.tensor([float(self.source.label(index))])
