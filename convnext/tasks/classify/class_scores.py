"""Precision, recall, F1 and AUROC of each class, and their means, as scikit-learn defines them."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from torch import Tensor

from convnext.data.sources.base import ClassifySource
from convnext.errors import UsageError
from convnext.report.metrics import wilson
from convnext.tasks.base import Metrics

_MAX_LOGITS = 20_000_000  # that are kept for the AUROC: 80 MB


class ClassRow(TypedDict):
    """One class; numbers in percent, None where they are not defined."""

    images: int  # of the class
    predicted: int  # images that were classified as it
    precision: float | None  # the fraction of these that are of the class
    recall: float | None  # the fraction of the class's images that were classified as it: the accuracy of the class
    recall_interval: tuple[float, float] | None  # Wilson's 95 % interval
    f1: float | None  # harmonic mean of precision and recall
    auroc: float | None  # area under the ROC curve of the class's probability, against all other classes


def has_auroc(images: int, num_classes: int) -> bool:
    """Return whether an evaluation of so many images computes the AUROC: beyond a limit the logits would take too much memory."""
    return images * num_classes <= _MAX_LOGITS


def require_auroc(source: ClassifySource) -> None:
    """Raise UsageError if the AUROC of an evaluation on the images of a source is not computed or not defined."""
    if not has_auroc(len(source), len(source.classes)):
        raise UsageError(
            f"eval.best_by=auroc: {len(source)} images of {len(source.classes)} classes are too many for it; choose f1 or loss"
        )
    if len({source.label(index) for index in range(len(source))}) < 2:
        raise UsageError("eval.best_by=auroc: it is not defined because all validation images are of one class; add images, or choose loss")


def rows(totals: Sequence[int], hits: Sequence[int], predicted: Sequence[int], aurocs: Sequence[float | None]) -> list[ClassRow]:
    """Return a row for each class from its images, those classified correctly, those classified as it, and its AUROC (0 to 1)."""
    found: list[ClassRow] = []
    for total, hit, times, auroc in zip(totals, hits, predicted, aurocs, strict=True):
        low, high = wilson(hit / total, total) if total else (0.0, 1.0)
        found.append(
            {
                "images": total,
                "predicted": times,
                "precision": 100 * hit / times if times else None,
                "recall": 100 * hit / total if total else None,
                "recall_interval": (100 * low, 100 * high) if total else None,
                "f1": 200 * hit / (total + times) if total + times else None,
                "auroc": None if auroc is None else 100 * auroc,
            }
        )
    return found


def means(found: Sequence[ClassRow]) -> Metrics:
    """Return the means over the classes, in percent: `balanced_accuracy` of the recall, `f1` (macro), and `auroc` where it is known.

    Classes without images have no recall. F1 is that of the classes that have images or were predicted. Both follow scikit-learn's
    `balanced_accuracy_score` and `f1_score(average="macro")`. AUROC is `roc_auc_score(multi_class="ovr")`, over the classes that some
    but not all images have; of two classes it is the plain one.
    """
    columns = {
        "balanced_accuracy": [row["recall"] for row in found],
        "f1": [row["f1"] for row in found],
        "auroc": [row["auroc"] for row in found],
    }
    known = {name: [value for value in column if value is not None] for name, column in columns.items()}
    return {name: sum(column) / len(column) for name, column in known.items() if column}


def aurocs(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Return for each class the area under the ROC curve, 0 to 1, of its softmax probability; None if all images or none are of it.

    Args:
        logits: (N, C).
        labels: (N,).
    """
    probabilities = logits.double().softmax(1).numpy()
    return [area_under_roc(probabilities[:, label], (labels == label).numpy()) for label in range(logits.shape[1])]


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the area under the ROC curve, 0 to 1: how often a positive sample scores above a negative one, ties counting half.

    Args:
        scores: (N,).
        positive: bool (N,).

    Returns None if all samples or none are positive. It is computed from the ranks of the scores (Mann and Whitney, 1947).
    """
    ones = int(positive.sum())
    if not 0 < ones < len(positive):
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of equal scores, their mean
    return float((ranks[inverse][positive].sum() - ones * (ones + 1) / 2) / (ones * (len(positive) - ones)))
