"""Accuracy of a classifier, in total and by class."""

from typing import Any

import torch
from torch import Tensor

BINS = 15  # of confidence
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
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)  # samples, hits and sum of the confidences of each bin

    def update(self, logits: Tensor, labels: Tensor, accepted: Tensor | None = None) -> Tensor:
        """Add a batch.

        Args:
            logits: (N, num_classes) of any float type.
            labels: (N,).
            accepted: bool (N, num_classes), the classes that count as right where several do; by default the label alone. A
                right prediction then is its sample's label in all that goes by class.

        Returns: which predictions are right, bool (N,).
        """
        logits, labels = logits.detach().float().cpu(), labels.cpu()
        if accepted is None:
            accepted = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
        top5 = logits.topk(min(5, self.num_classes)).indices
        predicted = logits.argmax(1)
        right = accepted.gather(1, predicted[:, None])[:, 0]
        labels = torch.where(right, predicted, labels)
        log_probabilities = logits.log_softmax(1)
        self.count += len(labels)
        self.loss_sum -= log_probabilities.masked_fill(~accepted, -torch.inf).logsumexp(1).sum().item()
        self.top5_hits += int(accepted.gather(1, top5).any(1).sum())
        self.totals += torch.bincount(labels, minlength=self.num_classes)
        self.hits += torch.bincount(labels[right], minlength=self.num_classes)
        self._calibrate(log_probabilities.amax(1).exp(), right)
        if self.confusion is not None:
            flat = torch.bincount(labels * self.num_classes + predicted, minlength=self.num_classes**2)
            self.confusion += flat.view_as(self.confusion)
        return right

    def _calibrate(self, confidence: Tensor, right: Tensor) -> None:
        bins = torch.bucketize(confidence, torch.arange(1, BINS) / BINS)  # an edge belongs to the bin below it
        for row, weights in zip(self.bins, (torch.ones_like(confidence), right, confidence), strict=True):
            row += torch.bincount(bins, weights.double(), minlength=BINS)

    def merge(self, other: "ClassificationMetric") -> None:
        """Add the counts of other samples."""
        self.count += other.count
        self.loss_sum += other.loss_sum
        self.top5_hits += other.top5_hits
        self.hits += other.hits
        self.totals += other.totals
        self.bins += other.bins
        if self.confusion is not None and other.confusion is not None:
            self.confusion += other.confusion

    def compute(self) -> dict[str, float]:
        """The metrics of all samples so far.

        top1 and top5 (only where there are more than five classes) in percent; loss, the mean of -log of the probability of the
        accepted classes; count, the number of samples; and ece, the expected calibration error in percent:
        the sum over 15 bins of confidence, ((i - 1) / 15, i / 15] for i = 1 … 15, of the bin's share of the samples times the
        absolute difference between its accuracy and its mean confidence. The confidence of a sample is the probability of the
        predicted class. Source: Guo et al., *On Calibration of Modern Neural Networks* (2017), equation 3.
        """
        if not self.count:
            return {"count": 0}
        _, hits, confidences = self.bins
        ece = 100 * float((hits - confidences).abs().sum()) / self.count
        top5 = {"top5": 100 * self.top5_hits / self.count} if self.num_classes > 5 else {}
        found = {"top1": 100 * int(self.hits.sum()) / self.count} | top5
        return found | {"loss": self.loss_sum / self.count, "ece": ece, "count": self.count}

    def details(self) -> dict[str, Any]:
        """Plain values for a report.

        Samples and hits of each class; the confusion matrix [true][predicted]; and of each bin of confidence the number of
        samples, their accuracy and their mean confidence in percent, both None in an empty bin.
        """
        confusion = self.confusion.tolist() if self.confusion is not None else None
        bins = [
            {"count": int(n), "accuracy": 100 * hits / n if n else None, "confidence": 100 * sure / n if n else None}
            for n, hits, sure in self.bins.T.tolist()
        ]
        return {"totals": self.totals.tolist(), "hits": self.hits.tolist(), "confusion": confusion, "calibration": bins}
