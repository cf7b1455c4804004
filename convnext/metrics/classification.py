"""Accuracy of a classifier, in total and by class."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_FOR_CONFUSION = 2000  # classes: beyond it the matrix takes gigabytes and nobody reads it


class ClassificationMetric:
    """Counts over a whole evaluation: every sample once, in any order.

    Args:
        num_classes: outputs of the network.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.count = 0
        self.loss_sum = 0.0
        self.top5_hits = 0
        self.hits = torch.zeros(num_classes, dtype=torch.long)  # by true class
        self.totals = torch.zeros(num_classes, dtype=torch.long)
        small = num_classes <= _MOST_FOR_CONFUSION
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long) if small else None  # [true, predicted]

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, num_classes) of any float type, labels (N,)."""
        logits, labels = logits.detach().float().cpu(), labels.cpu()
        predicted = logits.argmax(1)
        self.count += len(labels)
        self.loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        top5 = logits.topk(min(5, self.num_classes)).indices
        self.top5_hits += int((top5 == labels[:, None]).any(1).sum())
        self.totals += torch.bincount(labels, minlength=self.num_classes)
        self.hits += torch.bincount(labels[predicted == labels], minlength=self.num_classes)
        if self.confusion is not None:
            flat = torch.bincount(labels * self.num_classes + predicted, minlength=self.num_classes**2)
            self.confusion += flat.view_as(self.confusion)

    def merge(self, other: "ClassificationMetric") -> None:
        """Add the counts of other samples."""
        self.count += other.count
        self.loss_sum += other.loss_sum
        self.top5_hits += other.top5_hits
        self.hits += other.hits
        self.totals += other.totals
        if self.confusion is not None and other.confusion is not None:
            self.confusion += other.confusion

    def compute(self) -> dict[str, float]:
        """top1 and top5 in percent (top5 only where there are more than five classes), mean loss, and the number of samples."""
        if not self.count:
            return {"count": 0}
        metrics = {"top1": 100 * int(self.hits.sum()) / self.count, "loss": self.loss_sum / self.count, "count": self.count}
        return metrics | ({"top5": 100 * self.top5_hits / self.count} if self.num_classes > 5 else {})

    def details(self) -> dict[str, Any]:
        """Plain lists for a report: samples and hits of each class, and the confusion matrix [true][predicted]."""
        confusion = self.confusion.tolist() if self.confusion is not None else None
        return {"totals": self.totals.tolist(), "hits": self.hits.tolist(), "confusion": confusion}
