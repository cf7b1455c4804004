"""What an evaluation of a masked autoencoder measures: its loss on images that it was not trained on."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from convnext.data.sources.base import ClassifySource
from convnext.tasks.base import Json, Metric, Metrics
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.text import printable

KEPT_IMAGES = 24


class HardImage(TypedDict):
    """An image and its loss."""

    image: str  # its name
    index: int  # in the source
    loss: float


class PretrainMetric(Metric[ClassifyBatch, Tensor]):
    """The losses of an evaluation.

    Args:
        source: the images.
    """

    def __init__(self, source: ClassifySource) -> None:
        self.source: ClassifySource | None = source
        self.found: dict[int, float] = {}  # loss, by position in the source

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"source": None}  # each process has its own

    def update(self, outputs: Sequence[Tensor], batch: ClassifyBatch) -> None:
        """Add the losses (scalars) of a batch."""
        self.found |= dict(zip(batch.indices, torch.stack(list(outputs)).cpu().tolist(), strict=True))

    def merge(self, other: "PretrainMetric") -> None:
        """Add what another process measured on other samples."""
        self.found |= other.found

    def compute(self) -> Metrics:
        """Return `loss`, the mean over images, and `count`."""
        if not self.found:
            return {"count": 0}
        losses = torch.tensor([self.found[index] for index in sorted(self.found)], dtype=torch.float64)
        return {"loss": float(losses.mean()), "count": len(losses)}

    def details(self) -> Json:
        """Return the images with the largest losses, the largest first."""
        if self.source is None:
            return {"hardest": []}
        worst = sorted(self.found, key=lambda index: (-self.found[index], index))[:KEPT_IMAGES]
        rows: list[HardImage] = [
            {"image": printable(self.source.name(index)), "index": index, "loss": self.found[index]} for index in worst
        ]
        return {"hardest": rows}
