"""Classes of which some have many more training images than others: weights of the loss, and what to report."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from convnext.data.sampling.draws import class_factors
from convnext.data.sources.base import ClassifySource
from convnext.errors import UsageError, nearest
from convnext.recipe import Recipe
from convnext.text import shortened

_REPORTED = 10  # times as many images as the smallest class, from which on the run says so
_SHOWN = 40  # characters of a class name


def labels_of(source: ClassifySource) -> np.ndarray:
    """Return the class of every image, int64 (images,)."""
    return np.array([source.label(index) for index in range(len(source))], dtype=np.int64)


def check_class_weights(recipe: Recipe, classes: Sequence[str]) -> None:
    """Raise UsageError, naming the nearest class, if `train.class_weights` names one that the data do not have."""
    given = recipe.train.class_weights
    for name in given if isinstance(given, Mapping) else ():
        if name not in classes:
            raise UsageError(f"train.class_weights: the data have no class {name!r}{nearest(name, classes)}")


def class_weights(recipe: Recipe, classes: Sequence[str], counts: Sequence[int]) -> Tensor | None:
    """Return the factor on the loss of each class, float32 (classes,); None if the recipe sets no weights.

    `train.class_weights=balanced` gives class c the weight N / (K n_c), where n_c of the N training images are of it and K classes
    have images. Weights given by name are 1 for the classes that are not named. All are then divided by their mean over the images
    as an epoch draws them, so that the learning rate keeps its meaning; for `balanced` that mean is 1 already.
    """
    given = recipe.train.class_weights
    if not given:
        return None
    drawn = np.array(counts, dtype=float)
    present = drawn > 0
    if given == "balanced":
        weights = np.where(present, drawn.sum() / (present.sum() * np.maximum(drawn, 1)), 1.0)
    else:
        weights = np.array([given.get(name, 1.0) for name in classes])
    if recipe.data.sampler == "balanced":
        drawn = present.astype(float)
    elif recipe.data.sampler == "repeat_factor":
        drawn *= class_factors(drawn / drawn.sum(), recipe.data.repeat_threshold)
    return torch.tensor(weights * drawn.sum() / (weights * drawn).sum(), dtype=torch.float32)


def remarks(recipe: Recipe, classes: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Return what to report of the numbers of training images: one line if they differ tenfold and the recipe does nothing about it."""
    train = recipe.train
    if train.class_weights or train.focal_gamma or recipe.data.sampler != "shuffle":
        return []
    present = [index for index, count in enumerate(counts) if count]
    fewest, most = min(present, key=counts.__getitem__), max(present, key=counts.__getitem__)
    if counts[most] < _REPORTED * counts[fewest]:
        return []
    few, many = (f"{shortened(classes[index], _SHOWN)} {counts[index]}" for index in (fewest, most))
    rare = sum(_REPORTED * counts[index] <= counts[most] for index in present)
    others = f" ({rare} classes have at most a tenth of the most)" if rare > 1 else ""
    return [
        f"the classes differ {counts[most] / counts[fewest]:.0f}-fold in training images: {few}, {many}{others}; data.sampler=balanced, "
        "train.class_weights=balanced or train.focal_gamma=2 counter that, and eval.best_by=balanced_accuracy counts every class alike"
    ]
