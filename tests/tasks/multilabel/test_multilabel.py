"""Multi-label classification: loss, metric, and a run from training to predictions."""

import json

import pytest
import torch
import torch.nn.functional as F
from command import run
from helpers import image_folder
from sklearn.metrics import average_precision_score, f1_score
from timm.data import Mixup

import convnext
from convnext import tasks
from convnext.data.randomness import seed_numpy
from convnext.data.sources.digits import open_digit_facts
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import load_recipe
from convnext.tasks.base import TaskData
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.multilabel.loss import asymmetric_loss
from convnext.tasks.multilabel.metric import MultilabelMetric
from convnext.tasks.multilabel.prediction import MultilabelPrediction

TINY = {"model.depths": [1, 1, 1, 1], "model.widths": [8, 8, 16, 16], "model.drop_path": 0, "train.epochs": 1, "train.warmup_epochs": 0}


def batch(count=8, classes=5):
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(count, classes, generator=generator) < 0.4).float()
    return ClassifyBatch(torch.randn(count, 3, 16, 16, generator=generator), targets, list(range(count)), [])


def model_of(images):
    return images.mean((2, 3)) @ (5 * torch.arange(15.0).reshape(3, 5).sin())


def criterion(**keys):
    recipe = load_recipe("multilabel_digits", {key.replace("__", "."): value for key, value in keys.items()})
    return tasks.get("multilabel").criterion(recipe, TaskData([], [], list("abcde"), []))


def test_binary_cross_entropy_with_smoothed_targets():
    found = criterion(train__label_smoothing=0.2)(model_of, batch())["loss"]
    assert torch.allclose(found, F.binary_cross_entropy_with_logits(model_of(batch().images), 0.8 * batch().labels + 0.1))


def test_the_asymmetric_loss_is_the_published_one():
    """As the authors' code has it, Alibaba-MIIL/ASL, src/loss_functions/losses.py: AsymmetricLoss, a mean in place of its sum."""
    logits, targets = 4 * torch.randn(8, 5, generator=torch.Generator().manual_seed(2)), batch().labels
    positive = torch.sigmoid(logits)
    negative = (1 - positive + 0.05).clamp(max=1)
    loss = targets * torch.log(positive.clamp(min=1e-8)) + (1 - targets) * torch.log(negative.clamp(min=1e-8))
    loss *= torch.pow(1 - positive * targets - negative * (1 - targets), 0 * targets + 4 * (1 - targets))
    assert torch.allclose(asymmetric_loss(logits, targets), -loss.mean(), atol=1e-6)
    found = criterion(train__loss="asymmetric")(model_of, batch())["loss"]
    assert torch.allclose(found, asymmetric_loss(model_of(batch().images), batch().labels))
    extreme = torch.tensor([[80.0, -80.0]], requires_grad=True)
    asymmetric_loss(extreme, torch.tensor([[0.0, 1.0]])).backward()
    assert extreme.grad.isfinite().all()


def test_mixed_images_have_the_mix_of_their_targets():
    seed_numpy(4)
    found = criterion(augment__mixup=0.8, augment__cutmix=1.0)(model_of, batch())["loss"]
    seed_numpy(4)
    images, fractions = Mixup(0.8, 1.0, label_smoothing=0, num_classes=8)(batch().images.clone(), torch.arange(8))
    share, targets = fractions[0, 0], batch().labels
    assert 0 < share < 1
    wanted = F.binary_cross_entropy_with_logits(model_of(images), share * targets + (1 - share) * targets.flip(0))
    assert torch.allclose(found, wanted, atol=1e-6)


class Source:
    """Names of images that are not there."""

    classes = ("a", "b", "c", "d", "e")

    def name(self, index):
        return f"image {index}"


def test_the_metric_equals_scikit_learn_in_any_parts():
    whole, logits = batch(60), torch.randn(60, 5, generator=torch.Generator().manual_seed(1)).round(decimals=1)  # with ties
    whole.labels[:, 4] = 0  # a class that no image has
    metric, other = MultilabelMetric(Source()), MultilabelMetric(Source())
    metric.update(logits[40:].unbind(), whole[40:])
    other.update(logits[:40].unbind(), whole[:40])
    metric.merge(other)
    targets, scores, found = whole.labels.numpy(), logits.numpy(), metric.compute()
    predicted = torch.sigmoid(logits).numpy() >= 0.5
    assert found["map"] == pytest.approx(100 * average_precision_score(targets[:, :4], scores[:, :4], average="macro"))
    assert found["f1"] == pytest.approx(100 * f1_score(targets[:, :4], predicted[:, :4], average="macro"))
    assert found["micro_f1"] == pytest.approx(100 * f1_score(targets, predicted, average="micro"))
    assert found["loss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, whole.labels)))
    rows = metric.details()["by_class"]
    assert [row["images"] for row in rows] == targets.sum(0).astype(int).tolist()
    assert (rows[4]["ap"], rows[4]["recall"], rows[4]["precision"]) == (None, None, 0)
    empty = MultilabelMetric(Source())
    empty.update(torch.zeros(2, 5).unbind(), ClassifyBatch(torch.empty(2, 0), torch.zeros(2, 5), [0, 1], []))
    with pytest.raises(ConvnextError, match="none of the 2 images to evaluate on has a class"):
        empty.compute()


def test_mistakes_are_the_images_with_the_highest_loss():
    metric = MultilabelMetric(Source())
    metric.update((torch.eye(3, 5) * 8 - 4).unbind(), ClassifyBatch(torch.empty(3, 0), torch.eye(5)[[0, 2, 2]], [5, 3, 4], []))
    (only,) = metric.details()["mistakes"]
    assert only == {"image": "image 3", "index": 3, "missed": [2], "wrong": [1]}


def test_a_prediction_is_the_set_of_its_classes():
    some = MultilabelPrediction(torch.tensor([0.2, 0.9, 0.5]), ["ant", "bee", "wasp"])
    assert some.labels() == [("bee", pytest.approx(0.9)), ("wasp", 0.5)]
    assert [row["class"] for row in some.to_json()["labels"]] == ["bee", "wasp"]
    assert [row["class"] for row in some.to_json(1)["top"]] == ["bee"]
    assert some.to_text() == "bee 90.0%  wasp 50.0%"
    none = MultilabelPrediction(torch.tensor([0.2, 0.1]), ["ant", "bee"])
    assert (none.rows(), none.to_text()) == ([], "none; ant 20.0%")


def test_facts_about_digits():
    source = open_digit_facts("digit-facts:val")
    sets = {frozenset(source.classes[label] for label in source.label(index)) for index in range(len(source))}
    assert frozenset() in sets  # of the digit 1
    assert frozenset({"even", "closed loop", "above 4"}) in sets  # of 6 and 8
    with pytest.raises(UsageError, match="did you mean 'digit-facts:val'"):
        open_digit_facts("digit-facts:vall")


def test_a_run_from_training_to_an_exported_file(tmp_path):
    folder = tmp_path / "run"
    settings = TINY | {"data.train": "digit-facts:val", "eval.best_by": "micro_f1"}
    result = convnext.train("multilabel_digits", settings, output=folder, device="cpu")
    assert result.best == result.metrics["micro_f1"]
    found = json.loads(run("eval", folder, "--workers", "0", "--json").stdout)
    assert found["map"] == pytest.approx(result.metrics["map"], abs=1e-3)
    assert "Scores by class" in (folder / "report.html").read_text("utf-8")
    text = run("eval", folder, "--data", "digit-facts:val", "--workers", "0", "--tta", "flip").stdout
    assert text.startswith("mAP ")
    open_digit_facts("digit-facts:val").read(0).save(tmp_path / "digit.png")
    (answer,) = json.loads(run("predict", folder, tmp_path / "digit.png", "--json").stdout)
    probabilities = [row["probability"] for row in answer["top"]]
    assert len(probabilities) == 4
    assert sum(probabilities) != pytest.approx(1, abs=1e-3)
    assert answer["labels"] == [row for row in answer["top"] if row["probability"] >= 0.5]
    run("predict", folder, tmp_path / "digit.png", "--output", tmp_path / "out.csv", "--top", "2")
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "image,row,rows,class,probability,error"
    convnext.export(folder, "safetensors", tmp_path / "exported.safetensors")
    again = convnext.load(tmp_path / "exported.safetensors", device="cpu")
    assert again.task == "multilabel"
    assert again(tmp_path / "digit.png").to_json() == convnext.load(folder, device="cpu")(tmp_path / "digit.png").to_json()


def test_one_class_for_each_image_is_a_set_of_one_and_images_are_held_out(tmp_path):
    where = {"data.train": str(image_folder(tmp_path / "photos")), "data.val": None, "data.image_size": 32}
    data = tasks.get("multilabel").open(load_recipe("multilabel_digits", where))
    targets = torch.stack([data.train[0, index].label for index in range(len(data.train))])
    assert targets.sum(1).tolist() == [1] * len(data.train)
    assert len(data.train) + len(data.val) == 24
    assert len(data.val) > 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.class_weights": "balanced"}, "train.class_weights=balanced has no effect: task multilabel does not use it, only classify"),
        ({"eval.best_by": "top1"}, "task multilabel has no metric 'top1'; known: map, f1, micro_f1, loss"),
        ({"train.loss": "asymetric"}, "train.loss: unknown loss 'asymetric'; did you mean 'asymmetric'"),
    ],
)
def test_keys_of_other_tasks_are_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("multilabel_digits", keys)
