"""Scores by class and their means beside scikit-learn's."""

import json

import numpy as np
import pytest
import torch
from helpers import image_folder
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support, roc_auc_score

import convnext
from convnext import tasks
from convnext.data.sources.open import open_source
from convnext.errors import UsageError
from convnext.models.weights.files import read_weights
from convnext.recipe import load_recipe
from convnext.tasks.classify import class_scores
from convnext.tasks.classify.metric import AccuracyCounts, ClassifyMetric


def measured(classes, count=200, seed=0, parts=3):
    """Logits with ties, labels, and the counts of both, merged from parts in another order."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(np.round(rng.standard_normal((count, classes)), 1))
    labels = torch.from_numpy(rng.integers(0, classes, count))
    logits[torch.arange(count), labels] += 0.5
    whole = AccuracyCounts(classes)
    for part in reversed(torch.arange(count).tensor_split(parts)):
        counts = AccuracyCounts(classes)
        counts.update(logits[part], labels[part])
        whole.merge(counts)
    return logits, labels, whole


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_equal_scikit_learn(classes):
    logits, labels, metric = measured(classes)
    found, rows, predicted = metric.compute(), metric.details()["by_class"], logits.float().argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    assert found["f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    probabilities = logits.float().double().softmax(1).numpy()
    scores = probabilities[:, 1] if classes == 2 else probabilities
    assert found["auroc"] == pytest.approx(100 * roc_auc_score(labels, scores, multi_class="ovr"))
    for label, row in enumerate(rows):
        assert (row["images"], row["predicted"]) == (support[label], int((predicted == label).sum()))
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((100 * precision[label], 100 * recall[label], 100 * f1[label]))
        assert row["auroc"] == pytest.approx(100 * roc_auc_score(labels == label, probabilities[:, label]))


def test_absent_and_never_predicted_classes_are_not_defined_and_the_means_skip_them_as_scikit_learn_does():
    metric = AccuracyCounts(4)  # class 2 is absent but predicted, class 3 neither; class 1 is never predicted
    metric.update(torch.eye(4)[[0, 0, 2, 0]], torch.tensor([0, 0, 0, 1]))
    rows, found = metric.details()["by_class"], metric.compute()
    assert [row["recall"] for row in rows] == [pytest.approx(200 / 3), 0, None, None]
    assert [row["precision"] for row in rows] == [pytest.approx(200 / 3), None, 0, None]
    assert [row["f1"] for row in rows] == [pytest.approx(200 / 3), 0, 0, None]
    assert [row["auroc"] is None for row in rows] == [False, False, True, True]
    assert found["balanced_accuracy"] == pytest.approx(100 / 3)
    assert found["f1"] == pytest.approx(100 * f1_score([0, 0, 0, 1], [0, 0, 2, 0], average="macro", zero_division=0))


def test_intervals_are_wilsons():
    metric = AccuracyCounts(2)
    metric.update(torch.eye(2)[[0] * 9 + [1]], torch.zeros(10, dtype=torch.long))
    found = metric.compute()
    assert (found["top1_low"], found["top1_high"]) == pytest.approx((59.585, 98.212), abs=0.001)  # of 9 in 10
    assert metric.details()["by_class"][0]["recall_interval"] == pytest.approx((59.585, 98.212), abs=0.001)
    assert "auroc" not in found  # all images are of one class


def test_logits_are_kept_up_to_a_limit(tmp_path, monkeypatch):
    source = open_source(str(image_folder(tmp_path / "photos", each=2)))
    monkeypatch.setattr(class_scores, "_MAX_LOGITS", 6 * 3)
    assert ClassifyMetric(3, source).counts.scores == []
    monkeypatch.setattr(class_scores, "_MAX_LOGITS", 6 * 3 - 1)
    assert ClassifyMetric(3, source).counts.scores is None
    with pytest.raises(UsageError, match=r"eval\.best_by=auroc: 6 images of 3 classes are too many"):
        tasks.get("classify").open(load_recipe("finetune", {"data.train": str(tmp_path / "photos"), "data.val": str(tmp_path / "photos"),
                                                            "eval.best_by": "auroc"}))  # fmt: skip


def train(tmp_path, name, **more):
    photos = tmp_path / "photos"
    if not photos.exists():
        image_folder(photos, each=6)
    settings = {
        "data.train": str(photos), "data.val": str(photos), "data.image_size": 32, "data.workers": 0, "train.epochs": 3,
        "model.name": "convnext_tiny", "model.depths": [1, 1, 1, 1], "model.widths": [4, 8, 8, 8], "train.batch_size": 9,
        "train.warmup_epochs": 0, "optim.lr": 0.02,
    }  # fmt: skip
    resumed = more.pop("resume", False)
    settings |= {key.replace("__", "."): value for key, value in more.items()}
    result = convnext.train("from_scratch_small", settings, output=tmp_path / name, device="cpu", resume=resumed, change=resumed)
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text("utf-8").splitlines()]
    return result, [line for line in lines if line["kind"] == "eval"]


@pytest.mark.parametrize(("name", "best"), [("loss", min), ("auroc", max)])
def test_the_best_weights_are_those_of_the_chosen_metric(tmp_path, name, best, capsys):
    result, evals = train(tmp_path, "run", eval__best_by=name, optim__lr=0.05)
    assert result.best == best(line[name] for line in evals)
    assert read_weights(tmp_path / "run" / "best.safetensors")[1]["metrics"][name] == result.best
    assert f"best {'AUROC' if name == 'auroc' else 'loss'} " in capsys.readouterr().err


def test_another_metric_on_resume_chooses_the_best_again(tmp_path, capsys):
    train(tmp_path, "run", train__epochs=2)
    result, evals = train(tmp_path, "run", eval__best_by="loss", train__epochs=3, resume=True)
    assert result.best == evals[-1]["loss"]
    assert "eval.best_by changed: the best weights are chosen again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval.best_by": "f2"}, r"task classify has no metric 'f2'; known: top1, balanced_accuracy, f1, auroc, loss"),
        ({"eval.best_by": "top1", "task": "segment"}, "task segment has no metric 'top1'; known: miou, "),
        ({"eval.best_by": "f1", "task": "detect"}, "task detect has no metric 'f1'; known: box_ap, "),
    ],
)
def test_an_unknown_metric_is_refused_with_the_list(keys, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("digits", keys)
