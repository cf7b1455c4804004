"""What an evaluation of a classifier measures: accuracy in all and by class, calibration, confusion, and the worst mistakes."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from convnext.data.sources.base import ClassifySource
from convnext.data.sources.evaluation_sets import EvaluationSet
from convnext.report.metrics import CalibrationBin, wilson
from convnext.tasks.base import Json, Metric, Metrics
from convnext.tasks.classify import class_scores
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.robustness import CorruptionCounts, CorruptionRow
from convnext.text import printable

BINS = 15  # of confidence
KEPT_MISTAKES = 24
_MAX_CONFUSION = 2000  # classes: beyond it the matrix takes gigabytes and nobody reads it


class _Mistake(TypedDict):
    index: int  # in the source
    true: int
    predicted: int
    confidence: float  # 0 to 1
    probability_of_true: float


class NamedMistake(_Mistake):
    """An image that was classified wrongly."""

    image: str  # its name


class AccuracyDetails(TypedDict):
    """Counts by class and by confidence."""

    totals: list[int]  # samples of each class
    hits: list[int]
    confusion: list[list[int]] | None  # [true][predicted]; None where there are too many classes
    calibration: list[CalibrationBin]
    by_class: list[class_scores.ClassRow]


class ClassifyDetails(AccuracyDetails):
    """What the report of a classifier draws."""

    mistakes: list[NamedMistake]  # the worst first
    corruptions: NotRequired[list[CorruptionRow]]  # only of corrupted images


class AccuracyCounts:
    """Counts over a whole evaluation: every sample once, in any order.

    Args:
        num_classes: outputs of the network.
        with_auroc: whether to keep the logits, from which the AUROC is computed.
    """

    def __init__(self, num_classes: int, with_auroc: bool = True) -> None:
        self.num_classes = num_classes
        self._by_class: list[class_scores.ClassRow] | None = None  # computed from the counts so far
        self.scores: list[tuple[Tensor, Tensor]] | None = [] if with_auroc else None  # logits and labels of each batch
        self.count = 0
        self.loss_sum = 0.0
        self.top5_hits = 0
        self.hits = torch.zeros(num_classes, dtype=torch.long)  # by true class
        self.totals = torch.zeros(num_classes, dtype=torch.long)
        self.predictions = torch.zeros(num_classes, dtype=torch.long)  # by predicted class
        small = num_classes <= _MAX_CONFUSION
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long) if small else None  # [true, predicted]
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)  # samples, hits and sum of the confidences of each bin

    def update(self, logits: Tensor, labels: Tensor, accepted: Tensor | None = None) -> Tensor:
        """Add a batch.

        Args:
            logits: (N, num_classes) of any float type.
            labels: (N,).
            accepted: bool (N, num_classes), the classes that count as correct where several do; by default the label alone. A
                correct prediction then is its sample's label in all counts by class.

        Returns: which predictions are correct, bool (N,).
        """
        logits, labels = logits.detach().float().cpu(), labels.cpu()
        if accepted is None:
            accepted = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
        top5 = logits.topk(min(5, self.num_classes)).indices
        predicted = logits.argmax(1)
        correct = accepted.gather(1, predicted[:, None])[:, 0]
        labels = torch.where(correct, predicted, labels)
        log_probabilities = logits.log_softmax(1)
        self.count += len(labels)
        self.loss_sum -= log_probabilities.masked_fill(~accepted, -torch.inf).logsumexp(1).sum().item()
        self.top5_hits += int(accepted.gather(1, top5).any(1).sum())
        self.totals += torch.bincount(labels, minlength=self.num_classes)
        self.hits += torch.bincount(labels[correct], minlength=self.num_classes)
        self._by_class = None
        self.predictions += torch.bincount(predicted, minlength=self.num_classes)
        self._calibrate(log_probabilities.amax(1).exp(), correct)
        if self.scores is not None:
            self.scores.append((logits, labels))
        if self.confusion is not None:
            flat = torch.bincount(labels * self.num_classes + predicted, minlength=self.num_classes**2)
            self.confusion += flat.view_as(self.confusion)
        return correct

    def _calibrate(self, confidence: Tensor, correct: Tensor) -> None:
        bins = torch.bucketize(confidence, torch.arange(1, BINS) / BINS)  # an edge belongs to the bin below it
        for row, weights in zip(self.bins, (torch.ones_like(confidence), correct, confidence), strict=True):
            row += torch.bincount(bins, weights.double(), minlength=BINS)

    def merge(self, other: "AccuracyCounts") -> None:
        """Add the counts of other samples."""
        self._by_class = None
        self.count += other.count
        self.loss_sum += other.loss_sum
        self.top5_hits += other.top5_hits
        self.hits += other.hits
        self.totals += other.totals
        self.predictions += other.predictions
        self.bins += other.bins
        if self.scores is not None and other.scores is not None:
            self.scores += other.scores
        if self.confusion is not None and other.confusion is not None:
            self.confusion += other.confusion

    def compute(self) -> Metrics:
        """Return the metrics of all samples so far.

        `top1` and `top5` (the latter with more than five classes) are in percent, `top1_low` and `top1_high` the bounds of Wilson's
        95 % interval of top1, and `balanced_accuracy`, `f1` and `auroc` the means of `class_scores.means`. `loss` is the mean of -log
        of the probability of the accepted classes, and `count` the number of samples. `ece` is the expected calibration error in
        percent: over 15 bins of confidence, ((i - 1) / 15, i / 15] for i = 1 … 15, the sum of the bin's share of the samples times
        the absolute difference between its accuracy and its mean confidence. The confidence of a sample is the probability of the
        predicted class.
        Source: Guo et al., *On Calibration of Modern Neural Networks* (2017), equation 3.
        """
        if not self.count:
            return {"count": 0}
        _, hits, confidences = self.bins
        ece = 100 * float((hits - confidences).abs().sum()) / self.count
        top5 = {"top5": 100 * self.top5_hits / self.count} if self.num_classes > 5 else {}
        correct = int(self.hits.sum())
        low, high = wilson(correct / self.count, self.count)
        found = {"top1": 100 * correct / self.count, "top1_low": 100 * low, "top1_high": 100 * high} | top5
        return found | class_scores.means(self.by_class()) | {"loss": self.loss_sum / self.count, "ece": ece, "count": self.count}

    def details(self) -> AccuracyDetails:
        """Return the counts by class and by confidence as plain values."""
        bins: list[CalibrationBin] = [
            {"count": int(n), "accuracy": 100 * hits / n if n else None, "confidence": 100 * sure / n if n else None}
            for n, hits, sure in self.bins.T.tolist()
        ]
        return {
            "totals": self.totals.tolist(),
            "hits": self.hits.tolist(),
            "confusion": self.confusion.tolist() if self.confusion is not None else None,
            "calibration": bins,
            "by_class": self.by_class(),
        }

    def by_class(self) -> list[class_scores.ClassRow]:
        """Return precision, recall, F1 and AUROC of each class."""
        if self._by_class is None:
            aurocs: list[float | None] = [None] * self.num_classes
            if self.scores:
                aurocs = class_scores.aurocs(*(torch.cat(parts) for parts in zip(*self.scores, strict=True)))
            self._by_class = class_scores.rows(self.totals.tolist(), self.hits.tolist(), self.predictions.tolist(), aurocs)
        return self._by_class


class ClassifyMetric(Metric[ClassifyBatch, Tensor]):
    """Accuracy over an evaluation, and the samples with the worst mistakes.

    Args:
        num_classes: outputs of the network.
        source: the images. An `EvaluationSet` says which of the outputs compete and which answers are correct.
    """

    def __init__(self, num_classes: int, source: ClassifySource) -> None:
        self.source: ClassifySource | None = source
        self.set = source if isinstance(source, EvaluationSet) else None
        self.corrupted = self.set.corrupted if self.set is not None else None
        classes = num_classes if self.set is None else len(source.classes)
        self.counts = AccuracyCounts(classes, self.set is None and class_scores.has_auroc(len(source), classes))
        self.corruptions = CorruptionCounts(self.corrupted.parts) if self.corrupted is not None else None
        self.mistakes: list[_Mistake] = []  # the worst first

    def __getstate__(self) -> dict[str, object]:
        # Gathered from all processes: the counts, not the names of millions of images, which each process has.
        return self.__dict__ | {"source": None, "set": None, "corrupted": None}

    def update(self, outputs: Sequence[Tensor], batch: ClassifyBatch) -> None:
        """Add the network's logits (outputs,) for each sample of a batch."""
        logits, accepted = torch.stack(list(outputs)), None
        if self.set is not None:
            logits, accepted = self.set.competing(logits), self.set.accepted(batch.indices)
        correct = self.counts.update(logits, batch.labels, accepted)
        if self.corruptions is not None and self.corrupted is not None:
            self.corruptions.update(correct, torch.tensor([self.corrupted.part(index) for index in batch.indices]))
        probabilities = logits.detach().float().softmax(1).cpu()
        labels = batch.labels.cpu()
        confidence, predicted = probabilities.max(1)
        self.mistakes += [
            {
                "index": batch.indices[i],
                "true": int(labels[i]),
                "predicted": int(predicted[i]),
                "confidence": float(confidence[i]),
                "probability_of_true": float(probabilities[i, labels[i]]),
            }
            for i in (~correct).nonzero().flatten().tolist()
        ]
        self._keep_worst()

    def merge(self, other: "ClassifyMetric") -> None:
        """Add what another process measured on other samples."""
        self.counts.merge(other.counts)
        if self.corruptions is not None and other.corruptions is not None:
            self.corruptions.merge(other.corruptions)
        self.mistakes += other.mistakes
        self._keep_worst()

    def _keep_worst(self) -> None:
        self.mistakes.sort(key=lambda mistake: (mistake["probability_of_true"], mistake["index"]))
        del self.mistakes[KEPT_MISTAKES:]

    def compute(self) -> Metrics:
        """Return the metrics of `AccuracyCounts.compute`, and for corrupted images those of `CorruptionCounts.compute`."""
        return self.counts.compute() | (self.corruptions.compute() if self.corruptions is not None else {})

    def details(self) -> Json:
        """Return the `ClassifyDetails` as plain values."""
        details: Json = dict(self.counts.details()) | {"mistakes": self._named_mistakes()}
        return details | ({"corruptions": self.corruptions.details()} if self.corruptions is not None else {})

    def _named_mistakes(self) -> list[NamedMistake]:
        if self.source is None:
            return []
        name = self.source.name
        return [{**mistake, "image": printable(name(mistake["index"]))} for mistake in self.mistakes]
