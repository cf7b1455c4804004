"""The training loss against timm's, which are the published code's."""

import pytest
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from convnext.data.randomness import seed_numpy
from convnext.recipe import load_recipe
from convnext.tasks.classify.task import Batch, Trainer


def model_of(images):
    return images.mean((2, 3)) @ torch.arange(15.0).reshape(3, 5).sin()


def batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 5, list(range(8)), [])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing(smoothing):
    trainer = Trainer(load_recipe("digits", {"train.label_smoothing": smoothing}), list("abcde"))
    wanted = LabelSmoothingCrossEntropy(smoothing)(model_of(batch().images), batch().labels)
    assert torch.allclose(trainer.loss(model_of, batch()), wanted, atol=1e-6)


def test_mixed_targets():
    trainer = Trainer(load_recipe("digits", {"augment.mixup": 0.8, "augment.cutmix": 1.0}), list("abcde"))
    for i in range(10):
        seed_numpy(i)
        found = trainer.loss(model_of, batch())
        seed_numpy(i)
        images, targets = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=5)(batch().images, batch().labels)
        assert torch.allclose(found, SoftTargetCrossEntropy()(model_of(images), targets), atol=1e-6)
