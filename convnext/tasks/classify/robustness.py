"""The errors of a classifier under corruption: by corruption and severity, and their means."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from convnext.errors import ConvnextError
from convnext.tasks.base import Metrics

# Top-1 error of AlexNet on each corruption of ImageNet-C, the mean of the five severities, by which errors are normalised.
# Source: Hendrycks and Dietterich (ICLR 2019), https://github.com/hendrycks/robustness; digits as in google-research/augmix.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


class CorruptionRow(TypedDict):
    """The errors under one corruption, in percent."""

    corruption: str
    errors: dict[int, float]  # by severity
    mean: float  # of them
    ce: NotRequired[float]  # the corruption error: only of ImageNet-C's corruptions


class CorruptionCounts:
    """Counts of an evaluation on corrupted images, by corruption and severity.

    Args:
        parts: (corruption, severity) of each part.
    """

    def __init__(self, parts: Sequence[tuple[str, int]]) -> None:
        self.parts = parts
        self.totals = torch.zeros(len(parts), dtype=torch.long)
        self.hits = torch.zeros(len(parts), dtype=torch.long)

    def update(self, correct: Tensor, parts: Tensor) -> None:
        """Add a batch: which predictions are correct, bool (N,), and the part of each image, (N,)."""
        self.totals += torch.bincount(parts, minlength=len(self.parts))
        self.hits += torch.bincount(parts[correct], minlength=len(self.parts))

    def merge(self, other: "CorruptionCounts") -> None:
        """Add the counts of other images."""
        self.totals += other.totals
        self.hits += other.hits

    def compute(self) -> Metrics:
        """Return `mean_error` and, for the corruptions of ImageNet-C, `mce`, both in percent.

        `mean_error` is the mean over corruptions of the mean error over severities, as papers report it for ImageNet-C-bar (Mintun
        et al., 2021). `mce` is the mean over corruptions of the sum of errors over severities divided by AlexNet's, as papers report
        it for ImageNet-C (Hendrycks and Dietterich, 2019, section 4.1). Raises ConvnextError if a part has no images.
        """
        rows = self.details()
        metrics: Metrics = {"mean_error": sum(row["mean"] for row in rows) / len(rows)}
        if ratios := [row["ce"] for row in rows if "ce" in row]:
            metrics["mce"] = sum(ratios) / len(ratios)
        return metrics

    def details(self) -> list[CorruptionRow]:
        """Return a row for each corruption. Raises ConvnextError if a part has no images."""
        errors: dict[str, dict[int, float]] = {}
        for (corruption, severity), total, hits in zip(self.parts, self.totals.tolist(), self.hits.tolist(), strict=True):
            if not total:
                raise ConvnextError(f"no image of {corruption}, severity {severity}, could be read: check the files of that part")
            errors.setdefault(corruption, {})[severity] = 100 * (total - hits) / total
        rows: list[CorruptionRow] = []
        for corruption, by_severity in errors.items():
            mean = sum(by_severity.values()) / len(by_severity)
            row: CorruptionRow = {"corruption": corruption, "errors": by_severity, "mean": mean}
            if corruption in ALEXNET_ERRORS:
                row["ce"] = mean / ALEXNET_ERRORS[corruption]
            rows.append(row)
        return rows
