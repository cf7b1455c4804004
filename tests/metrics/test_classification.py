import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from convnext.metrics.classification import ClassificationMetric


@pytest.mark.parametrize("split", [1, 3, 7])
def test_equals_scikit_learn_however_the_samples_are_batched(split):
    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.standard_normal((200, 9))), torch.from_numpy(rng.integers(0, 9, 200))
    metric = ClassificationMetric(9)
    for part in torch.arange(200).tensor_split(split):
        metric.update(logits[part], labels[part])
    found, probabilities = metric.compute(), logits.softmax(1).numpy()
    assert found["top1"] == pytest.approx(100 * accuracy_score(labels, probabilities.argmax(1)))
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, probabilities, k=5))
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert metric.details()["confusion"] == confusion_matrix(labels, probabilities.argmax(1)).tolist()
    assert metric.details()["totals"] == np.bincount(labels).tolist()


def test_few_classes_and_no_samples():
    metric = ClassificationMetric(3)
    assert metric.compute() == {"count": 0}
    metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
    assert metric.compute().keys() == {"top1", "loss", "count"}
