"""The losses of a detector's classes, by formulas of their own."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import sample_image
from torch import nn

import convnext
from convnext import tasks
from convnext.errors import UsageError
from convnext.recipe import load_recipe
from convnext.tasks.detect.loss import region_loss

TINY = {"model.width": 8, "model.depths": [1, 1, 1, 1], "model.channels": 16, "model.fc_channels": 32, "model.masks": False}


@pytest.fixture
def regions():
    torch.manual_seed(0)
    return 3 * torch.randn(20, 4), torch.randint(0, 4, (20,))


def test_without_weights_and_gamma_it_is_cross_entropy(regions):
    torch.testing.assert_close(region_loss(*regions, None, 0.0), F.cross_entropy(*regions, reduction="sum"))


def test_weights_are_those_of_pytorch(regions):
    weights = torch.tensor([0.5, 2.0, 1.5, 1.0])
    torch.testing.assert_close(region_loss(*regions, weights, 0.0), F.cross_entropy(*regions, weight=weights, reduction="sum"))


def test_the_focal_factor_by_hand(regions):
    logits, labels = (one.double().numpy() for one in regions)
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(20), labels.astype(int)]
    assert region_loss(*regions, None, 2.0).item() == pytest.approx((-((1 - p) ** 2) * np.log(p)).sum(), rel=1e-5)


def test_no_region_has_no_loss():
    assert region_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, 2.0) == 0


@pytest.fixture
def opened(tmp_path):
    """A recipe on two images: three ants and a bee."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(2)]
    labels = [(0, 1), (1, 1), (1, 1), (1, 2)]
    found = [{"id": k, "image_id": i, "category_id": c, "bbox": [8 * k, 8, 24, 30]} for k, (i, c) in enumerate(labels)]
    for image in images:
        sample_image(image["id"], (64, 64)).save(tmp_path / image["file_name"])
    values = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(values))
    data = dict.fromkeys(("data.train", "data.val"), f"coco:{tmp_path}/boxes.json:{tmp_path}")
    return lambda **train: load_recipe("detect_digits", data | TINY | {f"train.{key}": value for key, value in train.items()})


class Outputs(nn.Module):
    """Takes the place of a detector: notes what its loss of regions is."""

    def forward(self, images, targets, class_loss=F.cross_entropy):
        return {"loss_cls": class_loss(torch.zeros(3, 3), torch.tensor([0, 1, 2])), "acc": torch.tensor(1.0)}


def test_balanced_weights_count_objects(opened):
    task, recipe = tasks.get("detect"), opened(class_weights="balanced")
    data = task.open(recipe)
    batch = task.collate([])
    losses = task.criterion(recipe, data)(Outputs(), batch)
    # 4 objects of 2 classes: 4 / (2 x 3) and 4 / (2 x 1); background counts once
    assert losses["loss_cls"].item() == pytest.approx((4 / 6 + 4 / 2 + 1) * np.log(3), rel=1e-6)


def test_a_weight_of_no_class_is_refused(opened):
    recipe = opened(class_weights={"bees": 2})
    with pytest.raises(UsageError, match="train.class_weights: the data have no class 'bees'; did you mean 'bee'"):
        tasks.get("detect").criterion(recipe, tasks.get("detect").open(recipe))


def test_a_detector_changes_the_loss_of_its_classes_alone(opened):
    task, plain = tasks.get("detect"), opened()
    data = task.open(plain)
    model = convnext.create_model(plain.model.name, num_classes=2, **plain.model.arguments())
    torch.manual_seed(0)
    image, target = torch.rand(3, 64, 64), {"boxes": torch.tensor([[8.0, 8, 32, 38]]), "labels": torch.tensor([1])}
    batch = task.collate([])
    batch.images, batch.targets = [image], [target]
    found = []
    for recipe in (plain, opened(focal_gamma=2)):
        torch.manual_seed(1)
        found.append(task.criterion(recipe, data)(model, batch))
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == ["loss_cls"]
