"""What an evaluation of a multi-label classifier measures: average precision, F1 at a probability of one half, and the worst images."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.data.sources.base import ClassifySource
from convnext.errors import ConvnextError
from convnext.tasks.base import Json, Metric, Metrics
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.multilabel.data import label_set
from convnext.tasks.multilabel.prediction import THRESHOLD
from convnext.text import printable

KEPT_MISTAKES = 24


class LabelRow(TypedDict):
    """One class; numbers in percent, None where they are not defined."""

    images: int  # that have the class
    predicted: int  # images for which it was predicted
    precision: float | None
    recall: float | None
    f1: float | None
    ap: float | None  # average precision


class Mistake(TypedDict):
    """An image with a class too many or too few."""

    image: str  # its name
    index: int  # in the source
    missed: list[int]
    wrong: list[int]


class MultilabelDetails(TypedDict):
    """What the report draws."""

    by_class: list[LabelRow]
    mistakes: list[Mistake]  # those with the highest loss first


class MultilabelMetric(Metric[ClassifyBatch, Tensor]):
    """Scores of each class, over an evaluation whose logits are all kept: 4 bytes for each image and class.

    Args:
        source: the images.
    """

    def __init__(self, source: ClassifySource) -> None:
        self.source: ClassifySource | None = source
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []  # positions in the source, logits, targets

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"source": None}  # each process has its own

    def update(self, outputs: Sequence[Tensor], batch: ClassifyBatch) -> None:
        """Add the network's logits (classes,) for each sample of a batch."""
        logits = torch.stack(list(outputs)).detach().float().cpu()
        self.parts.append((torch.tensor(batch.indices), logits, batch.labels.cpu()))

    def merge(self, other: "MultilabelMetric") -> None:
        """Add what another process measured on other samples."""
        self.parts += other.parts

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions (N,), logits and targets (N, C), in the order of the source."""
        indices, logits, targets = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        order = indices.argsort()
        return indices[order], logits[order], targets[order]

    def compute(self) -> Metrics:
        """Return the metrics, in percent but for `loss` and `count`, the number of images.

        `map` is the mean of the average precision of the classes that some image has, `f1` the mean of their F1 (macro), and
        `micro_f1` the F1 of all decisions together, at a probability of one half. `loss` is the mean binary cross-entropy. They are
        scikit-learn's `average_precision_score` and `f1_score`. Raises ConvnextError if no image has a class: none is defined then.
        """
        if not self.parts:
            return {"count": 0}
        _, logits, targets = self._all()
        if not bool(targets.any()):
            raise ConvnextError(f"none of the {len(targets)} images to evaluate on has a class, so average precision is not defined")
        rows = self.by_class()
        present = [row for row in rows if row["images"]]
        hits = int(((logits.sigmoid() >= THRESHOLD) & (targets > 0)).sum())
        decided = sum(row["images"] + row["predicted"] for row in rows)
        return {
            "map": sum(row["ap"] or 0.0 for row in present) / len(present),
            "f1": sum(row["f1"] or 0.0 for row in present) / len(present),
            "micro_f1": 200 * hits / decided,
            "loss": F.binary_cross_entropy_with_logits(logits, targets).item(),
            "count": len(targets),
        }

    def by_class(self) -> list[LabelRow]:
        """Return the scores of each class."""
        _, logits, targets = self._all()
        predicted, true, scores = (logits.sigmoid() >= THRESHOLD).numpy(), (targets > 0).numpy(), logits.numpy()
        return [_row(predicted[:, label], true[:, label], scores[:, label]) for label in range(logits.shape[1])]

    def details(self) -> Json:
        """Return the `MultilabelDetails` as plain values."""
        details: MultilabelDetails = {"by_class": self.by_class() if self.parts else [], "mistakes": self._mistakes() if self.parts else []}
        return dict(details)

    def _mistakes(self) -> list[Mistake]:
        indices, logits, targets = self._all()
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        predicted, true = logits.sigmoid() >= THRESHOLD, targets > 0
        found: list[Mistake] = []
        for place in losses.argsort(descending=True, stable=True).tolist():
            missed, wrong = (one.nonzero().flatten().tolist() for one in (true[place] & ~predicted[place], predicted[place] & ~true[place]))
            if (missed or wrong) and len(found) < KEPT_MISTAKES and self.source is not None:
                index = int(indices[place])
                found.append({"image": printable(self.source.name(index)), "index": index, "missed": missed, "wrong": wrong})
        return found


def _row(predicted: np.ndarray, true: np.ndarray, scores: np.ndarray) -> LabelRow:
    images, times, hits = int(true.sum()), int(predicted.sum()), int((predicted & true).sum())
    return {
        "images": images,
        "predicted": times,
        "precision": 100 * hits / times if times else None,
        "recall": 100 * hits / images if images else None,
        "f1": 200 * hits / (images + times) if images + times else None,
        "ap": 100 * average_precision(scores, true) if images else None,
    }


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the sum over thresholds of precision times the gain of recall, 0 to 1, as scikit-learn's `average_precision_score`.

    Args:
        scores: (N,).
        positive: bool (N,), at least one True.
    """
    order = np.argsort(-scores, kind="stable")
    hits, scores = np.cumsum(positive[order]), scores[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # equal scores share a threshold
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def names_of(source: ClassifySource, index: int) -> str:
    """Return the names of an image's classes, for a caption."""
    return ", ".join(source.classes[label] for label in label_set(source, index)) or "none"
