import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from convnext.tasks.classify.metric import AccuracyCounts


@pytest.mark.parametrize("split", [1, 3, 7])
def test_equals_scikit_learn_however_the_samples_are_batched(split):
    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.standard_normal((200, 9))), torch.from_numpy(rng.integers(0, 9, 200))
    metric = AccuracyCounts(9)
    for part in torch.arange(200).tensor_split(split):
        metric.update(logits[part], labels[part])
    found, probabilities = metric.compute(), logits.softmax(1).numpy()
    assert found["top1"] == pytest.approx(100 * accuracy_score(labels, probabilities.argmax(1)))
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, probabilities, k=5))
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert metric.details()["confusion"] == confusion_matrix(labels, probabilities.argmax(1)).tolist()
    assert metric.details()["totals"] == np.bincount(labels).tolist()


def test_few_classes_and_no_samples():
    metric = AccuracyCounts(3)
    assert metric.compute() == {"count": 0}
    metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
    assert metric.compute().keys() == {"top1", "top1_low", "top1_high", "balanced_accuracy", "f1", "auroc", "loss", "ece", "count"}


def expected_calibration_error(confidence, right):
    """Guo et al. (2017), equation 3, as it stands there."""
    total = 0.0
    for m in range(1, 16):
        members = [i for i in range(len(right)) if (m - 1) / 15 < confidence[i] <= m / 15]
        if members:
            total += len(members) / len(right) * abs(np.mean(right[members]) - np.mean(confidence[members]))
    return total


@pytest.mark.parametrize(("classes", "sharpness"), [(4, 1), (10, 3), (1000, 8)])
def test_calibration_error_is_the_published_formula(classes, sharpness):
    rng = np.random.default_rng(classes)
    logits, labels = torch.from_numpy(sharpness * rng.standard_normal((500, classes))), torch.from_numpy(rng.integers(0, classes, 500))
    labels[::2] = logits[::2].argmax(1)  # so that there is something to be calibrated
    whole, first, second = (AccuracyCounts(classes) for _ in range(3))
    whole.update(logits, labels)
    first.update(logits[:123], labels[:123])
    second.update(logits[123:], labels[123:])
    first.merge(second)
    probabilities = logits.softmax(1).numpy()
    confidence, right = probabilities.max(1), (probabilities.argmax(1) == labels.numpy()).astype(float)
    wanted = 100 * expected_calibration_error(confidence, right)
    assert wanted > 1
    assert whole.compute()["ece"] == pytest.approx(wanted, abs=1e-4)  # in percent
    assert first.compute()["ece"] == pytest.approx(wanted, abs=1e-4)
    bins = whole.details()["calibration"]
    assert len(bins) == 15
    for i, one in enumerate(bins):
        inside = (i / 15 < confidence) & (confidence <= (i + 1) / 15)
        assert one["count"] == inside.sum()
        assert one["accuracy"] == (pytest.approx(100 * right[inside].mean()) if inside.any() else None)
        assert one["confidence"] == (pytest.approx(100 * confidence[inside].mean(), rel=1e-5) if inside.any() else None)


def test_a_confidence_on_an_edge_is_in_the_bin_below_and_certainty_in_the_last():
    metric = AccuracyCounts(3)
    metric.update(torch.tensor([[0.0, 0, 0], [100, 0, 0]]), torch.tensor([0, 1]))  # confidences 1/3, which is 5/15, and 1
    assert [i for i, one in enumerate(metric.details()["calibration"]) if one["count"]] == [4, 14]
    assert metric.compute()["ece"] == pytest.approx(100 * (0.5 * (1 - 1 / 3) + 0.5 * (1 - 0)))


def test_of_several_accepted_classes_any_is_correct():
    metric = AccuracyCounts(6)
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [3, 2, 1, 0, -1, -2]])
    accepted = torch.tensor([[1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0]]).bool()
    assert metric.update(logits, torch.tensor([5, 2]), accepted).tolist() == [True, False]
    found = metric.compute()
    assert (found["top1"], found["top5"], found["count"]) == (50, 100, 2)
    p = logits[0].softmax(0)
    assert found["loss"] == pytest.approx(float(-(p[0] + p[5]).log() - (p[2] + p[3]).log()) / 2, rel=1e-6)
    assert metric.details()["totals"] == [1, 0, 1, 0, 0, 0]  # the right prediction is its sample's label
    assert metric.details()["confusion"][2] == [1, 0, 0, 0, 0, 0]
