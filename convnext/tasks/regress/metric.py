"""What an evaluation of a network that predicts a number measures: errors, and the images with the largest."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from convnext.data.sources.base import ClassifySource
from convnext.tasks.base import Json, Metric, Metrics
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.text import printable

KEPT_MISTAKES = 24


class WrongValue(TypedDict):
    """An image, its number, and the one that was predicted."""

    image: str  # its name
    index: int  # in the source
    true: float
    predicted: float


class RegressMetric(Metric[ClassifyBatch, Tensor]):
    """Errors over an evaluation.

    Args:
        source: the images.
    """

    def __init__(self, source: ClassifySource) -> None:
        self.source: ClassifySource | None = source
        self.found: dict[int, tuple[float, float]] = {}  # predicted and true number, by position in the source

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"source": None}  # each process has its own

    def update(self, outputs: Sequence[Tensor], batch: ClassifyBatch) -> None:
        """Add the predicted numbers (1,) of a batch, in the data's unit."""
        values = torch.stack(list(outputs)).detach().float().cpu()[:, 0].tolist()
        self.found |= dict(zip(batch.indices, zip(values, batch.labels[:, 0].tolist(), strict=True), strict=True))

    def merge(self, other: "RegressMetric") -> None:
        """Add what another process measured on other samples."""
        self.found |= other.found

    def compute(self) -> Metrics:
        """Return `r2`, the coefficient of determination in percent, and `mae` and `rmse` in the data's unit, and `count`.

        R² is 100 % minus the ratio of the squared error to that of always predicting the mean; NaN where all numbers are equal.
        """
        if not self.found:
            return {"count": 0}
        predicted, true = torch.tensor([self.found[index] for index in sorted(self.found)], dtype=torch.float64).T
        errors, spread = predicted - true, ((true - true.mean()) ** 2).sum()
        r2 = 100 * (1 - float((errors**2).sum() / spread)) if float(spread) else float("nan")
        return {"r2": r2, "mae": float(errors.abs().mean()), "rmse": float((errors**2).mean().sqrt()), "count": len(true)}

    def details(self) -> Json:
        """Return the images with the largest errors, the worst first."""
        if self.source is None:
            return {"mistakes": []}
        worst = sorted(self.found, key=lambda index: (-abs(self.found[index][0] - self.found[index][1]), index))[:KEPT_MISTAKES]
        rows: list[WrongValue] = [
            {"image": printable(self.source.name(index)), "index": index, "true": self.found[index][1], "predicted": self.found[index][0]}
            for index in worst
        ]
        return {"mistakes": rows}
