"""Outliers and torn images."""

import numpy as np
import pytest

from convnext.fit.features import Features
from convnext.fit.quality.outliers import distances, outliers, torn


def features_of(rows):
    rows = np.asarray(rows, np.float32)
    return Features(rows, rows, np.arange(len(rows)))


def known(count=200, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 12)) + 6 * np.eye(12)[rng.integers(0, 3, count)]


def test_images_in_other_directions_are_outliers_the_farthest_first():
    strange = np.array([-6.0 * np.eye(12)[5], -6.0 * np.eye(12)[5] + 3 * np.eye(12)[0]])
    found = outliers(features_of([*known(), *strange]))
    assert [one.row for one in found[:2]] == [200, 201]
    assert found[0].distance > found[1].distance > found[0].typical > 0


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_set_has_few_outliers(seed):
    assert len(outliers(features_of(known(400, seed)))) <= 10


def test_an_image_is_not_its_own_neighbour():
    rows = known(30)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -1)
    assert distances(features_of(rows)) == pytest.approx(1 - np.sort(similar, 1)[:, -10:].mean(1), abs=1e-5)


def test_both_views_of_an_image_count():
    rows = known(30).astype(np.float32)
    mirrored = rows.copy()
    mirrored[7] = -rows[7]
    found = distances(Features(rows, mirrored, np.arange(30)))
    assert found[7] > distances(features_of(rows))[7]


def test_few_images_can_not_be_told():
    assert outliers(features_of(known(19))) is None
    assert outliers(features_of(known(20))) is not None


def test_equal_images_have_no_outliers():
    assert outliers(features_of(np.ones((40, 3)))) == []


def test_torn_images_come_by_their_margin_with_both_classes():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.45, 0.1, 0.45], [0.3, 0.45, 0.25], [0.4, 0.59, 0.01]])
    found = torn(np.array([0, 1, 2, 0]), probabilities)
    assert [(one.row, one.label, one.first, one.second) for one in found] == [(1, 1, 0, 2), (2, 2, 1, 0), (3, 0, 1, 0)]
    assert [one.margin for one in found] == pytest.approx([0.0, 0.15, 0.19])


def test_a_single_class_tears_nothing():
    assert torn(np.zeros(3, np.int64), np.ones((3, 1))) == []
