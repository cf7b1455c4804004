"""Heads for images of any number of classes each (a logistic regression per class), and of a number each (ridge regression)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from convnext.fit.heads import Chosen, Linear, Space, Tried, best_temperature, out_of_fold, quietly

_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C of the logistic regressions, from strong to weak regularisation
_PENALTIES = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 0.1, 0.01)  # of the ridge regression, from strong to weak
_CERTAIN = 30.0  # the logit of a class that all training images have, and of one that none has, negated


@dataclass(frozen=True)
class Unit:
    """What the outputs of a regression count: standard deviations from the mean of the training images' numbers."""

    mean: float
    std: float


def choose_labels(space: Space, targets: np.ndarray, fold: np.ndarray) -> Chosen:
    """Return the multi-label head with the lowest cross-validated loss, after its temperature.

    Args:
        space: the features.
        targets: float64 (N, classes), 0 or 1.
        fold: int64 (N,), see `heads.choose_folds`.
    """
    outputs, tried = {}, []
    for strength in _STRENGTHS:
        found = out_of_fold(space, fold, partial(logistics, space, targets, strength))
        temperature = temperature_of(found, targets)
        outputs[strength] = found / temperature, temperature
        name = f"logistic regressions, C = {strength:g}"
        tried.append((strength, Tried(name, binary_entropy(outputs[strength][0], targets), mean_precision(outputs[strength][0], targets))))
        if len(tried) > 2 and min(one.loss for _, one in tried[-2:]) > min(one.loss for _, one in tried):
            break
    strength, best = min(tried, key=lambda one: one[1].loss)
    logits, temperature = outputs[strength]
    head = space.on_features(logistics(space, targets, strength, np.arange(len(targets)))).divided_by(temperature)
    return Chosen(head, best.name, _ranked([one for _, one in tried], best), logits, np.ones(len(targets), bool), temperature)


def choose_values(space: Space, values: np.ndarray, fold: np.ndarray, unit: Unit) -> Chosen:
    """Return the regression with the lowest cross-validated squared error; its outputs count `unit`.

    Args:
        space: the features.
        values: float64 (N,), in the data's unit.
        fold: int64 (N,), see `heads.choose_folds`.
        unit: of the outputs.
    """
    targets = ((values - unit.mean) / unit.std)[:, None]
    outputs, tried = {}, []
    for penalty in _PENALTIES:
        outputs[penalty] = out_of_fold(space, fold, partial(ridge, space, targets, penalty))
        loss = float(((outputs[penalty] - targets) ** 2).mean())
        tried.append((penalty, Tried(f"ridge regression, penalty {penalty:g}", loss, 100 * (1 - loss / float(targets.var())))))
    penalty, best = min(tried, key=lambda one: one[1].loss)
    head = space.on_features(ridge(space, targets, penalty, np.arange(len(values))))
    return Chosen(head, best.name, _ranked([one for _, one in tried], best), outputs[penalty], np.ones(len(values), bool))


def logistics(space: Space, targets: np.ndarray, strength: float, rows: np.ndarray) -> Linear:
    """Return a binary logistic regression for each class, fitted on some rows."""
    from sklearn.linear_model import LogisticRegression

    x, labels, weights = space.samples(rows, targets)
    found = Linear(np.zeros((targets.shape[1], x.shape[1])), np.zeros(targets.shape[1]))
    for number in range(targets.shape[1]):
        y = labels[:, number]
        if y.min() == y.max():
            found.bias[number] = _CERTAIN if y[0] else -_CERTAIN
            continue
        one = LogisticRegression(C=strength, max_iter=300)
        quietly(partial(one.fit, x, y, weights))
        found.weight[number], found.bias[number] = one.coef_[0], one.intercept_[0]
    return found


def ridge(space: Space, targets: np.ndarray, penalty: float, rows: np.ndarray) -> Linear:
    """Return the ridge regression of some rows, targets float64 (N, 1)."""
    from sklearn.linear_model import Ridge

    one = Ridge(alpha=penalty)
    quietly(lambda: one.fit(*space.samples(rows, targets)))
    return Linear(np.atleast_2d(np.asarray(one.coef_, np.float64)), np.atleast_1d(np.asarray(one.intercept_, np.float64)))


def binary_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean binary cross-entropy of logits and targets (N, C), in nats."""
    return float(binary_entropies(logits, targets).mean())


def binary_entropies(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the mean binary cross-entropy of each row of logits and targets (N, C), (N,), in nats."""
    return (np.logaddexp(0, logits) - targets * logits).mean(1)


def squared_errors(outputs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the squared error of each of the outputs (N, 1) and numbers (N,), both of one unit, (N,)."""
    return (outputs[:, 0] - values) ** 2


def mean_precision(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean over the classes of the average precision, in percent; classes of all images or of none don't count."""
    from sklearn.metrics import average_precision_score

    counted = [number for number in range(targets.shape[1]) if 0 < targets[:, number].sum() < len(targets)]
    return 100 * float(np.mean([average_precision_score(targets[:, n], logits[:, n]) for n in counted])) if counted else float("nan")


def temperature_of(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the number that logits (N, C) are best divided by: that with the lowest binary cross-entropy, from 0.05 to 20."""
    return best_temperature(binary_entropy, logits, targets)


def _ranked(tried: Sequence[Tried], best: Tried) -> tuple[Tried, ...]:
    return tuple(sorted((replace(one, chosen=one is best) for one in tried), key=lambda one: one.loss))
