"""The training loss beside timm's, whose losses are the published code's."""

import pytest
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from convnext.data.randomness import seed_numpy
from convnext.recipe import load_recipe
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.loss import ClassifyCriterion


def model_of(images):
    return images.mean((2, 3)) @ torch.arange(15.0).reshape(3, 5).sin()


def batch():
    generator = torch.Generator().manual_seed(0)
    return ClassifyBatch(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 5, list(range(8)), [])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing(smoothing):
    criterion = ClassifyCriterion(load_recipe("digits", {"train.label_smoothing": smoothing}), 5)
    wanted = LabelSmoothingCrossEntropy(smoothing)(model_of(batch().images), batch().labels)
    found = criterion(model_of, batch())
    assert found.keys() == {"loss"}
    assert torch.allclose(found["loss"], wanted, atol=1e-6)


def test_mixed_targets():
    criterion = ClassifyCriterion(load_recipe("digits", {"augment.mixup": 0.8, "augment.cutmix": 1.0}), 5)
    for i in range(10):
        seed_numpy(i)
        found = criterion(model_of, batch())["loss"]
        seed_numpy(i)
        images, targets = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=5)(batch().images, batch().labels)
        assert torch.allclose(found, SoftTargetCrossEntropy()(model_of(images), targets), atol=1e-6)
