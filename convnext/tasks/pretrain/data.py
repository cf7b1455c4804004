"""Images without labels: their sources, and samples with the seed of what is hidden."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from convnext.data.loader import Samples
from convnext.data.sources.base import ClassifySource
from convnext.data.sources.open import open_unlabelled

# The task is a variant of classification, so its sources pass for a ClassifySource, all labels of which are 0.


def open_images(where: str, classes: Sequence[str] | None = None) -> ClassifySource:
    """Return the images that `where` names, as `open_unlabelled` does."""
    return cast("ClassifySource", open_unlabelled(where))


class SeededSamples(Samples):
    """Training images with a random number each, by which patches are hidden. It is a function of (seed, epoch, index)."""

    def prepare(self, image: Any, index: int) -> tuple[Tensor, int]:
        """Return the image at a position of the source, and a number."""
        return self.transform(image), int(torch.randint(1 << 62, ()))
