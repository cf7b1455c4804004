"""All that features show about a dataset, in one value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from convnext.data.sources.base import ImageSource
from convnext.fit.features import Features
from convnext.fit.heads import FEW_NUMBERS, Chosen
from convnext.fit.quality.duplicates import DataPart, Duplicates, find_duplicates
from convnext.fit.quality.growth import Growth, growth
from convnext.fit.quality.labels import Suspect, suspects
from convnext.fit.quality.outliers import Outlier, TornImage, outliers, torn


@dataclass(frozen=True, eq=False)
class Findings:
    """What the features of a dataset show about it. Rows are those of the first part's features."""

    parts: Sequence[DataPart]
    duplicates: Duplicates
    outliers: list[Outlier] | None  # None for too few images
    suspects: list[Suspect] | None  # None, as the next two, of images that have not one class each
    torn: list[TornImage] | None
    growth: Growth | None


def examine(
    parts: Sequence[DataPart], targets: np.ndarray, fold: np.ndarray, chosen: Chosen, progress: Callable[[int, int], object] | None = None
) -> Findings:
    """Return what features show about the data.

    Args:
        parts: the training images, and those of the validation part if there is one.
        targets: of the N training images with features: int64 (N,) if they have one class each.
        fold: int64 (N,), of the cross-validation.
        chosen: the head that it chose.
        progress: called with the numbers of images read and in all.
    """
    features = parts[0].features
    duplicates = find_duplicates(parts, progress)
    if targets.dtype != np.int64 or chosen.refit is None:
        return Findings(parts, duplicates, outliers(features), None, None, None)
    probabilities = softmax(chosen.outputs, axis=1)
    probabilities[~chosen.measured] = 1 / probabilities.shape[1]  # heads that never saw the class know nothing of the image
    wrong = [one for one in suspects(features, targets, probabilities) if chosen.measured[one.row]]
    doubtful = [one for one in torn(targets, probabilities) if chosen.measured[one.row]]
    with threadpool_limits(1 if features.plain.size < FEW_NUMBERS else None):
        grown = growth(chosen.refit, chosen.outputs, targets, fold)
    return Findings(parts, duplicates, outliers(features), wrong, doubtful, grown)


def parts_of_fit(train: ImageSource, found: Features, val: ImageSource | None, val_found: Features | None) -> list[DataPart]:
    """Return the parts of the data of a fit, as `examine` takes them."""
    parts = [DataPart("train", train, found)]
    return parts if val is None or val_found is None else [*parts, DataPart("val", val, val_found)]
