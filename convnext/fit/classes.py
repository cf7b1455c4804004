"""Heads for images of one class each: multinomial logistic regression and class means with shrinkage; the temperature of both."""

from dataclasses import replace
from functools import partial

import numpy as np
from scipy.special import log_softmax

from convnext.errors import ConvnextError
from convnext.fit.heads import Chosen, Fit, Linear, Space, Tried, best_temperature, out_of_fold, parts, quietly
from convnext.fit.quality.neighbours import directions, nearest

_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C of the logistic regression, from strong to weak regularisation
_NEVER = 30.0  # below all others: the logit of a class without training images
_SEARCH = 4e8  # numbers x classes of a fit, above which C is chosen on one fold
_SHRINKAGE = 5e7  # numbers of a fit, above which class means are not tried: their covariance takes too long
_UNEVEN = 2.0  # times as many images as the smallest class, from which on weights are tried
_NEIGHBOURS = 5


def choose(space: Space, labels: np.ndarray, fold: np.ndarray, count: int) -> Chosen:
    """Return the head with the lowest cross-validated loss, after its temperature.

    Args:
        space: the features.
        labels: int64 (N,).
        fold: int64 (N,), see `heads.choose_folds`.
        count: classes.

    Raises ConvnextError if no image can be measured: no class has images outside of one fold.
    """
    known = _known(labels, fold)
    if not known.any():
        raise ConvnextError("every class has a single image, or a single group of images, so no accuracy can be measured: add images")
    strength = _best_strength(space, labels, fold, known, count)
    candidates = dict(_candidates(space, labels, strength, count))
    outputs = {name: out_of_fold(space, fold, fit) for name, fit in candidates.items()}
    temperatures = {name: temperature_of(found[known], labels[known]) for name, found in outputs.items()}
    tried = [_tried(name, outputs[name] / temperatures[name], labels, known) for name in candidates]
    best = min(tried, key=lambda one: one.loss)
    if (weighted := _weighted(space, labels, fold, known, outputs[best.name], strength, count)) is not None:
        name, fit, found, helps = weighted
        candidates[name], outputs[name], temperatures[name] = fit, found, temperature_of(found[known], labels[known])
        tried.append(_tried(name, found / temperatures[name], labels, known))
        best = tried[-1] if helps else best
    tried.append(_nearest(space, labels, fold, known, count))
    head = space.on_features(candidates[best.name](np.arange(len(labels)))).divided_by(temperatures[best.name])
    ranked = sorted((replace(one, chosen=one.name == best.name) for one in tried), key=lambda one: one.loss)
    found = outputs[best.name] / temperatures[best.name]

    def refit(train: np.ndarray, held: np.ndarray) -> np.ndarray:
        return candidates[best.name](train)(space.plain[held])

    return Chosen(head, best.name, tuple(ranked), found, known, temperatures[best.name], refit)


def logistic(space: Space, labels: np.ndarray, count: int, strength: float, balanced: bool, rows: np.ndarray) -> Linear:
    """Return the multinomial logistic regression of some rows, with the regularisation 1 / strength; see scikit-learn's C."""
    from sklearn.linear_model import LogisticRegression

    if (labels[rows] == labels[rows[0]]).all():
        return _always(int(labels[rows[0]]), space, count)
    found = LogisticRegression(C=strength, max_iter=300, class_weight="balanced" if balanced else None)
    quietly(lambda: found.fit(*space.samples(rows, labels)))
    return _of_all_classes(found.coef_, found.intercept_, found.classes_, count)


def class_means(space: Space, labels: np.ndarray, count: int, rows: np.ndarray) -> Linear:
    """Return the linear discriminant of some rows: class means, by a covariance that is shrunk as Ledoit and Wolf (2004) say."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if (labels[rows] == labels[rows[0]]).all():
        return _always(int(labels[rows[0]]), space, count)
    found = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    quietly(lambda: found.fit(*space.samples(rows, labels)[:2]))
    return _of_all_classes(found.coef_, found.intercept_, found.classes_, count)


def temperature_of(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the number that logits (N, C) are best divided by: that with the lowest cross-entropy, from 0.05 to 20."""
    return best_temperature(cross_entropy, logits, labels) if len(logits) else 1.0


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy of logits (N, C) and labels (N,), in nats."""
    return float(cross_entropies(logits, labels).mean())


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each row of logits (N, C) and its label, (N,), in nats."""
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def _of_all_classes(weight: np.ndarray, bias: np.ndarray, present: np.ndarray, count: int) -> Linear:
    """Return a head of scikit-learn's as one of all classes: of two classes it has one row, and it lacks those without images."""
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    if len(present) == 2 and len(weight) == 1:
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    whole = Linear(np.zeros((count, weight.shape[1])), np.full(count, bias.min() - _NEVER))
    whole.weight[present], whole.bias[present] = weight, bias
    return whole


def _always(label: int, space: Space, count: int) -> Linear:
    """Return the head that knows one class only."""
    return Linear(np.zeros((count, space.plain.shape[1])), np.where(np.arange(count) == label, 0.0, -_NEVER))


def _known(labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return which images have a class that the other folds have too, bool (N,)."""
    known = np.zeros(len(labels), bool)
    for train, held in parts(fold):
        known[held] = np.isin(labels[held], labels[train])
    return known


def _candidates(space: Space, labels: np.ndarray, strength: float, count: int) -> list[tuple[str, Fit]]:
    """Return the kinds of heads to compare: the logistic regression of that strength, and class means for not too many numbers."""
    found: list[tuple[str, Fit]] = [
        (f"logistic regression, C = {strength:g}", partial(logistic, space, labels, count, strength, False)),
    ]
    if space.plain.size <= _SHRINKAGE:
        found.append(("class means, shrunk covariance", partial(class_means, space, labels, count)))
    return found


def _best_strength(space: Space, labels: np.ndarray, fold: np.ndarray, known: np.ndarray, count: int) -> float:
    """Return the C with the lowest cross-validated loss. It is sought from strong to weak until the loss has risen twice."""
    search = fold if space.plain.size * count <= _SEARCH else np.where(fold == fold[0], 0, 1)
    losses: dict[float, float] = {}
    for strength in _STRENGTHS:
        held, outputs = _some_outputs(space, search, partial(logistic, space, labels, count, strength, False), search is fold)
        held, outputs = held[known[held]], outputs[known[held]]
        losses[strength] = cross_entropy(outputs / temperature_of(outputs, labels[held]), labels[held])
        if len(losses) > 2 and losses[strength] > min(losses.values()) and list(losses.values())[-2] > min(losses.values()):
            break
    return min(losses, key=lambda one: losses[one])


def _some_outputs(space: Space, fold: np.ndarray, fit: Fit, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and their outputs out of their folds; those of fold 0 alone unless `whole`."""
    if whole:
        return np.arange(len(fold)), out_of_fold(space, fold, fit)
    held = np.flatnonzero(fold == 0)
    return held, fit(np.flatnonzero(fold != 0))(space.plain[held])


def _tried(name: str, logits: np.ndarray, labels: np.ndarray, known: np.ndarray) -> Tried:
    right = logits[known].argmax(1) == labels[known]
    return Tried(name, cross_entropy(logits[known], labels[known]), 100 * float(right.mean()))


Weighted = tuple[str, Fit, np.ndarray, bool]


def _weighted(
    space: Space, labels: np.ndarray, fold: np.ndarray, known: np.ndarray, plain: np.ndarray, strength: float, count: int
) -> Weighted | None:
    """Return a logistic regression with weights of the classes, its outputs, and whether it helps; None for classes of like size.

    It helps if the mean recall of the classes rises by more than its standard error.
    """
    sizes = np.bincount(labels, minlength=count)
    sizes = sizes[sizes > 0]
    if sizes.max() < _UNEVEN * sizes.min():
        return None
    fit = partial(logistic, space, labels, count, strength, True)
    outputs = out_of_fold(space, fold, fit)
    gain = (outputs.argmax(1) == labels).astype(float) - (plain.argmax(1) == labels)
    classes = [np.flatnonzero(known & (labels == label)) for label in np.unique(labels[known])]
    mean = float(np.mean([gain[rows].mean() for rows in classes]))
    error = float(np.sqrt(sum(gain[rows].var() / len(rows) for rows in classes))) / len(classes)
    return f"logistic regression, C = {strength:g}, classes weighted", fit, outputs, mean > error and mean > 0


def _nearest(space: Space, labels: np.ndarray, fold: np.ndarray, known: np.ndarray, count: int) -> Tried:
    """Return what the five nearest neighbours would give, for comparison: they are no linear head, so they can't be chosen."""
    unit, votes = directions(space.plain), np.zeros((len(labels), count))
    for train, held in parts(fold):
        _, near = nearest(unit[held], unit[train], _NEIGHBOURS)
        np.add.at(votes, (held[:, None], labels[train][near]), 1.0)
    return replace(_tried(f"{_NEIGHBOURS} nearest neighbours", np.log(votes + 0.5), labels, known), linear=False)
