"""Images with any number of classes each: sources, their two parts, and samples."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from convnext.data.loader import Samples
from convnext.data.sources.base import ClassifySource, target_kind_of
from convnext.data.sources.open import open_multilabel
from convnext.errors import UsageError

# The task is a variant of classification, so its sources pass for a ClassifySource. Where that has an int they may give a tuple of
# ints, and `label_set` reads both.


def label_set(source: ClassifySource, index: int) -> tuple[int, ...]:
    """Return the positions in `classes` of an image's classes."""
    found: object = source.label(index)
    return cast("tuple[int, ...]", found if isinstance(found, tuple) else (found,))


def open_labels(where: str, classes: Sequence[str] | None = None) -> ClassifySource:
    """Return the images that `where` names. One class for each image is taken as a set of one. Raises UsageError for numbers."""
    source = cast("ClassifySource", open_multilabel(where, classes))
    if target_kind_of(source) == "value":
        raise UsageError(f"{where} has a number for each image, and task multilabel learns classes")
    return source


class LabelSamples(Samples):
    """Images with float32 targets (C,): 1 for each of the image's classes, 0 for the others."""

    def prepare(self, image: Any, index: int) -> tuple[Tensor, Tensor]:
        """Return the image at a position of the source and its target."""
        target = torch.zeros(len(self.source.classes))
        target[list(label_set(self.source, index))] = 1
        return self.transform(image), target


def class_counts(source: ClassifySource) -> list[int]:
    """Return the number of images of each class."""
    counts = [0] * len(source.classes)
    for index in range(len(source)):
        for label in label_set(source, index):
            counts[label] += 1
    return counts
