"""Heads: exact on features, never fitted on what they are measured on, the temperature and the weights that help."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from convnext.errors import ConvnextError
from convnext.fit import classes, others
from convnext.fit.features import Features
from convnext.fit.heads import Space, better_of, choose_folds, out_of_fold, parts


def features_of(x, noise=0.05, seed=0):
    x = x.astype(np.float32)
    mirrored = x + noise * np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    return Features(x, mirrored, np.arange(len(x)))


def clusters(counts, width=20, spread=1.0, seed=0):
    """Classes around means of their own; returns features (N, width) and labels."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(len(counts), width))
    labels = np.repeat(np.arange(len(counts)), counts)
    return means[labels] + spread * rng.normal(size=(len(labels), width)), labels


def folds_of(labels, groups=None):
    return choose_folds([f"{index}.png" for index in range(len(labels))], labels.tolist(), groups)


@pytest.mark.parametrize("width", [8, 300])
def test_a_head_of_the_space_is_the_same_function_on_features(width):
    x, labels = clusters([20, 20, 20], width)
    found = features_of(3 + 5 * x)
    space = Space(found)
    head = classes.logistic(space, labels, 3, 0.1, False, np.arange(60))
    assert space.plain.shape[1] == min(width, 120)
    np.testing.assert_allclose(space.on_features(head)(found.plain.astype(float)), head(space.plain), atol=1e-6)


def test_the_rotation_changes_no_head():
    x, labels = clusters([15, 15, 15], 400)
    found = features_of(x)
    both = np.concatenate([found.plain, found.mirrored]).astype(float)
    scaled = (both - both.mean(0)) / both.std(0)
    direct = LogisticRegression(C=0.01, max_iter=2000, tol=1e-8).fit(scaled, np.tile(labels, 2), np.full(90, 0.5))
    head = classes.logistic(Space(found), labels, 3, 0.01, False, np.arange(45))
    np.testing.assert_allclose(softmax(head(Space(found).plain), 1), direct.predict_proba(scaled[:45]), atol=2e-3)


def test_two_classes_have_two_outputs_and_a_class_without_images_is_never_predicted():
    x, labels = clusters([20, 20])
    labels = np.where(labels == 1, 2, 0)  # class 1 has no image
    head = classes.logistic(Space(features_of(x)), labels, 3, 1.0, False, np.arange(40))
    probabilities = softmax(head(Space(features_of(x)).plain), 1)
    assert probabilities.shape == (40, 3)
    assert probabilities[:, 1].max() < 1e-9
    assert (probabilities.argmax(1) == labels).mean() > 0.9


def test_labels_that_features_do_not_tell_are_not_predicted_out_of_fold():
    # With mirror images on both sides of a fold the accuracy would be near 100 %.
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(200, 300)), rng.integers(0, 2, 200)
    found = classes.choose(Space(features_of(x, noise=0.001)), labels, folds_of(labels), 2)
    assert all(35 < one.score < 65 for one in found.tried)
    assert softmax(found.outputs, 1).max(1).mean() < 0.65  # and the temperature says so


def test_the_lowest_loss_is_chosen_and_the_head_is_fitted_on_all_images():
    x, labels = clusters([40, 40, 40], spread=1.5)
    space = Space(features_of(x))
    found = classes.choose(space, labels, folds_of(labels), 3)
    linear = [one for one in found.tried if "neighbours" not in one.name]
    assert [one.name for one in found.tried if one.chosen] == [found.name] == [min(linear, key=lambda one: one.loss).name]
    whole = found.head(x.astype(np.float32)).argmax(1) == labels
    assert whole.mean() > 0.9
    assert found.measured.all()


def test_class_means_are_chosen_where_their_model_is_true_and_images_are_few():
    x, labels = clusters([6] * 8, width=60, spread=1.0, seed=3)
    found = classes.choose(Space(features_of(x)), labels, folds_of(labels), 8)
    assert {one.name.split(",")[0] for one in found.tried} == {"logistic regression", "class means", "5 nearest neighbours"}


def test_the_temperature_undoes_what_multiplies_logits():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20000, 4))
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits, 1)])
    assert classes.temperature_of(3 * logits, labels) == pytest.approx(3, rel=0.05)


def test_class_weights_are_taken_where_they_help():
    x, labels = clusters([300, 300, 12], width=6, spread=1.6, seed=5)
    found = classes.choose(Space(features_of(x)), labels, folds_of(labels), 3)
    weighted = [one for one in found.tried if "weighted" in one.name]
    assert len(weighted) == 1
    assert weighted[0].chosen
    even, same = clusters([50, 50, 50], width=6, spread=1.6)
    assert not any("weighted" in one.name for one in classes.choose(Space(features_of(even)), same, folds_of(same), 3).tried)


def test_the_only_image_of_a_class_is_fitted_on_and_not_measured():
    x, labels = clusters([20, 20, 1])
    found = classes.choose(Space(features_of(x)), labels, folds_of(labels), 3)
    assert found.measured.tolist() == [True] * 40 + [False]
    assert found.head(x[-1:].astype(np.float32)).argmax() == 2


def test_a_class_of_one_group_is_not_measured_and_two_such_classes_are_refused():
    x, labels = clusters([20, 20])
    one_group = np.where(labels == 0, 0, 1 + np.arange(40) % 3)  # all of class 0 in one fold
    found = classes.choose(Space(features_of(x)), labels, one_group, 2)
    assert found.measured.tolist() == [False] * 20 + [True] * 20
    with pytest.raises(ConvnextError, match="a single group of images, so no accuracy can be measured"):
        classes.choose(Space(features_of(x)), labels, labels, 2)


def test_folds_hold_groups_together_and_classes_evenly():
    labels = np.repeat([0, 1], 50)
    fold = folds_of(labels)
    assert all(np.bincount(labels[held]).tolist() == [10, 10] for _, held in parts(fold))
    groups = [f"plant {index // 5}" for index in range(100)]
    fold = folds_of(labels, groups)
    assert all(len({fold[index] for index in range(100) if groups[index] == name}) == 1 for name in groups)


def test_out_of_fold_outputs_are_by_heads_that_did_not_see_the_image():
    x, labels = clusters([10, 10])
    space, fold, seen = Space(features_of(x)), folds_of(labels), []

    def fit(rows):
        seen.append(set(rows.tolist()))
        return classes.logistic(space, labels, 2, 0.1, False, rows)

    found = out_of_fold(space, fold, fit)
    assert np.isfinite(found).all()
    for rows, (train, held) in zip(seen, parts(fold), strict=True):
        assert rows == set(train.tolist())
        assert rows.isdisjoint(held.tolist())


def test_mirror_images_are_left_out_where_they_are_another_class():
    x, labels = clusters([40, 40], spread=0.7)
    alike = features_of(x)
    swapped = Features(alike.plain, alike.plain[np.r_[40:80, 0:40]], alike.indices)  # a mirrored image looks like the other class
    for found, mirrors in ((alike, True), (swapped, False)):
        chosen = better_of(found, lambda space: classes.choose(space, labels, folds_of(labels), 2))
        assert chosen.mirrors == mirrors
        assert ("no mirror images" in chosen.name) != mirrors


def test_labels_in_any_number_have_a_calibrated_head_each():
    x, labels = clusters([60, 60, 60], spread=0.8)
    targets = np.stack([labels == 0, labels != 1, np.ones(180)], 1).astype(float)  # the last is true of all
    found = others.choose_labels(Space(features_of(x)), targets, folds_of(labels))
    assert np.isfinite(found.outputs).all()
    assert others.mean_precision(found.outputs, targets) > 97
    assert (found.head(x.astype(np.float32))[:, 2] > 1).all()


def test_numbers_are_predicted_in_units_of_their_spread():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 10))
    values = 40 + 7 * (x @ rng.normal(size=10)) + 0.1 * rng.normal(size=150)
    unit = others.Unit(values.mean(), values.std())
    found = others.choose_values(Space(features_of(x, noise=0.001)), values, folds_of(np.zeros(150, int)), unit)
    np.testing.assert_allclose(unit.mean + unit.std * found.outputs[:, 0], values, atol=2)
    assert max(one.score for one in found.tried if one.chosen) > 99
