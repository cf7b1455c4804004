"""Linear heads on frozen features, and cross-validation: every image is predicted by a head that was fitted without it."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar

from convnext.data.split import folds, group_folds
from convnext.fit.features import Features

MAX_FOLDS = 5
FEW_NUMBERS = 5e7  # of all features, below which several threads only wait for each other


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer: outputs = x weightᵀ + bias."""

    weight: np.ndarray  # float64 (outputs, C)
    bias: np.ndarray  # float64 (outputs,)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs (N, outputs) for inputs (N, C)."""
        return x @ self.weight.T.astype(x.dtype, copy=False) + self.bias

    def divided_by(self, temperature: float) -> "Linear":
        """Return the layer whose outputs are divided by a number."""
        return Linear(self.weight / temperature, self.bias / temperature)


@dataclass(frozen=True)
class Tried:
    """A kind of head and what cross-validation measured of it."""

    name: str
    loss: float  # the mean loss of an image
    score: float  # the headline metric of the task, in percent
    chosen: bool = False
    linear: bool = True  # whether it could be chosen


Outputs = Callable[[np.ndarray, np.ndarray], np.ndarray]  # from rows to fit a head on, and rows to predict, to outputs of the latter


@dataclass(frozen=True, eq=False)
class Chosen:
    """The head that cross-validation chose, fitted on all images."""

    head: Linear  # on features
    name: str
    tried: tuple[Tried, ...]
    outputs: np.ndarray  # float64 (N, outputs): those of each image by the heads that were fitted without it
    measured: np.ndarray  # bool (N,): images that such a head could know
    temperature: float = 1.0  # that the outputs and the head are divided by already
    refit: Outputs | None = None  # fits this kind of head on some rows of the same features
    mirrors: bool = True  # whether it was fitted on the mirror images too


class Space:
    """Features centred, scaled, and rotated to no more numbers than they can differ in.

    A rotation changes no head with an L2 penalty, so a few hundred images of a thousand features are fitted in a few hundred numbers.

    Args:
        features: of the images.
        mirrors: whether heads are fitted on the mirror images too.
    """

    def __init__(self, features: Features, mirrors: bool = True) -> None:
        count, width = features.plain.shape
        self.mirrors = mirrors
        kind = np.float64 if count * width < 10_000_000 else np.float32  # of a large set: half the memory
        stacked = (np.concatenate([features.plain, features.mirrored]) if mirrors else features.plain).astype(kind)
        self.mean = stacked.mean(0, dtype=np.float64)
        std = stacked.std(0, dtype=np.float64)
        self.std = np.where(std > 1e-8 * max(std.max(), 1e-30), std, 1.0)
        stacked = ((stacked - self.mean) / self.std).astype(kind, copy=False)
        self.basis: np.ndarray | None = None  # (C, rank)
        if len(stacked) < width:
            self.basis, upper = np.linalg.qr(stacked.T)
            stacked = np.ascontiguousarray(upper.T)
        self.plain, self.mirrored = stacked[:count], stacked[count:]

    def samples(self, rows: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what a head is fitted on: the images of some rows, with their mirror images if these count, targets, and weights.

        The weights of an image and its mirror image add up to 1.
        """
        if not self.mirrors:
            return self.plain[rows], targets[rows], np.ones(len(rows))
        both = np.concatenate([self.plain[rows], self.mirrored[rows]])
        return both, np.concatenate([targets[rows], targets[rows]]), np.full(len(both), 0.5)

    def on_features(self, head: Linear) -> Linear:
        """Return a head of this space as one on features."""
        weight = head.weight if self.basis is None else head.weight @ self.basis.T
        weight = weight / self.std
        return Linear(weight, head.bias - weight @ self.mean)


Fit = Callable[[np.ndarray], Linear]  # from the rows to fit on to a head in the space


def out_of_fold(space: Space, fold: np.ndarray, fit: Fit) -> np.ndarray:
    """Return the outputs of each image by a head that was fitted on the other folds, float64 (N, outputs)."""
    found: np.ndarray | None = None
    for train, held in parts(fold):
        outputs = fit(train)(space.plain[held])
        if found is None:
            found = np.full((len(fold), outputs.shape[1]), np.nan)
        found[held] = outputs
    assert found is not None
    return found


def parts(fold: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each fold the rows outside of it and those in it."""
    for number in np.unique(fold):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def choose_folds(keys: Sequence[str], labels: Sequence[int], groups: Sequence[str] | None) -> np.ndarray:
    """Return the fold of each image, int64 (N,): at most five, with the classes evenly in them, and no group in two.

    Args:
        keys: the path of each image within the dataset.
        labels: the class of each image, 0 without classes.
        groups: the group of each image, if there are groups.
    """
    units = len(keys) if groups is None else len(set(groups))
    count = min(MAX_FOLDS, units)
    found = folds(keys, count, labels) if groups is None else group_folds(count, labels, groups)
    return np.array(found, np.int64)


def quietly(fit: Callable[[], object]) -> None:
    """Call a fit of scikit-learn without its warnings: one that has not converged is no worse than its cross-validation says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit()


def best_temperature(loss: Callable[[np.ndarray, np.ndarray], float], outputs: np.ndarray, targets: np.ndarray) -> float:
    """Return the number, from 0.05 to 20, that outputs are best divided by: that with the lowest loss."""
    found = minimize_scalar(lambda log: loss(outputs / np.exp(log), targets), bounds=(-3.0, 3.0), method="bounded")
    return float(np.exp(found.x))


def better_of(features: Features, choose: Callable[[Space], Chosen]) -> Chosen:
    """Return the better of two choices, with the mirror images and without: a mirrored 2 is not a 2, and a mirrored bee is a bee."""
    found = [(choose(Space(features, mirrors)), mirrors) for mirrors in (True, False)]
    best, mirrored = min(found, key=lambda one: next(tried.loss for tried in one[0].tried if tried.chosen))
    tried = [
        replace(each, name=each.name if mirrors else f"{each.name}, no mirror images", chosen=each.chosen and one is best)
        for one, mirrors in found
        for each in one.tried
        if mirrors or each.linear
    ]
    name = next(each.name for each in tried if each.chosen)
    return replace(best, name=name, tried=tuple(sorted(tried, key=lambda each: each.loss)), mirrors=mirrored)
