"""All that features tell of a dataset, in one value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from convnext.fit.quality.duplicates import DataPart, Duplicates, find_duplicates
from convnext.fit.quality.growth import Growth, Outputs, growth
from convnext.fit.quality.labels import Suspect, suspects
from convnext.fit.quality.outliers import Outlier, TornImage, outliers, torn


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What heads that were not fitted on an image say of it; of images with one class each."""

    labels: np.ndarray  # int64 (N,), of the first part's features
    logits: np.ndarray  # float64 (N, classes)
    measured: np.ndarray  # bool (N,): images whose class such a head could know
    fold: np.ndarray  # int64 (N,)
    refit: Outputs  # for `growth`


@dataclass(frozen=True, eq=False)
class Findings:
    """What the features of a dataset tell of it. Rows are those of the first part's features."""

    parts: Sequence[DataPart]
    duplicates: Duplicates
    outliers: list[Outlier] | None  # None if there are too few images to tell
    suspects: list[Suspect] | None  # None, as the next two, of images that have not one class each
    torn: list[TornImage] | None
    growth: Growth | None


def examine(parts: Sequence[DataPart], known: OutOfFold | None, progress: Callable[[int, int], object] | None = None) -> Findings:
    """Return what features tell of the data.

    Args:
        parts: the training images, and those of the validation part if there is one.
        known: of the training images; None where they have not one class each.
        progress: called with the numbers of images read and in all.
    """
    features = parts[0].features
    duplicates = find_duplicates(parts, progress)
    if known is None:
        return Findings(parts, duplicates, outliers(features), None, None, None)
    probabilities = softmax(known.logits, axis=1)
    wrong = [one for one in suspects(features, known.labels, probabilities) if known.measured[one.row]]
    doubtful = [one for one in torn(known.labels, probabilities) if known.measured[one.row]]
    return Findings(parts, duplicates, outliers(features), wrong, doubtful, growth(known.refit, known.labels, known.fold))
