"""The training loss beside timm's, whose losses are the published code's."""

import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from convnext.data.randomness import seed_numpy
from convnext.recipe import load_recipe
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.loss import ClassifyCriterion, weighted_loss


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


WEIGHTS = torch.tensor([0.2, 3, 1, 0.5, 2])


def logits():
    return 2 * torch.randn(8, 5, generator=torch.Generator().manual_seed(1))


def test_weights_without_smoothing_are_those_of_pytorch_averaged_over_the_samples():
    labels = batch().labels
    wanted = F.cross_entropy(logits(), labels, weight=WEIGHTS, reduction="none").mean()
    assert torch.allclose(weighted_loss(logits(), F.one_hot(labels, 5).float(), WEIGHTS, 0, 0), wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_image_of_weight_w_counts_w_times_with_its_smoothing(smoothing):
    labels = batch().labels
    each = F.cross_entropy(logits(), labels, label_smoothing=smoothing, reduction="none")
    found = weighted_loss(logits(), F.one_hot(labels, 5).float(), WEIGHTS, 0, smoothing)
    assert torch.allclose(found, (WEIGHTS[labels] * each).mean(), atol=1e-6)


def test_weights_of_one_and_gamma_zero_are_plain_cross_entropy_of_hard_and_mixed_targets():
    labels, mixed = batch().labels, logits().abs().softmax(1)
    hard = weighted_loss(logits(), F.one_hot(labels, 5).float(), torch.ones(5), 0, 0.1)
    assert torch.allclose(hard, F.cross_entropy(logits(), labels, label_smoothing=0.1), atol=1e-6)
    assert torch.allclose(weighted_loss(logits(), mixed, None, 0, 0.1), F.cross_entropy(logits(), mixed, label_smoothing=0.1), atol=1e-6)


def test_in_a_mix_each_image_counts_by_its_part_and_its_own_weight():
    criterion = ClassifyCriterion(load_recipe("digits", {"augment.mixup": 0.8}), 5, WEIGHTS)
    plain = ClassifyCriterion(load_recipe("digits", {"augment.mixup": 0.8}), 5)
    seed_numpy(3)
    found = criterion(model_of, batch())["loss"]
    seed_numpy(3)
    images, _ = plain.mix(batch().images, batch().labels)  # the same draws
    seed_numpy(3)
    part = Mixup(0.8, label_smoothing=0, num_classes=5)(batch().images, batch().labels)[1][0, 0]  # of label 0, mixed with label 2
    first, second, scores = batch().labels, batch().labels.flip(0), model_of(images)
    losses = [F.cross_entropy(scores, labels, label_smoothing=0.1, reduction="none") * WEIGHTS[labels] for labels in (first, second)]
    assert torch.allclose(found, (part * losses[0] + (1 - part) * losses[1]).mean(), atol=1e-6)


def test_focal_loss_is_the_published_formula_and_its_gradient_is_finite():
    labels = batch().labels
    p = logits().softmax(1)[range(8), labels]
    found = weighted_loss(logits(), F.one_hot(labels, 5).float(), None, 2, 0)
    assert torch.allclose(found, (-((1 - p) ** 2) * p.log()).mean(), atol=1e-6)
    sure = torch.tensor([[200.0, 0, 0], [0, 200.0, 0]], requires_grad=True)
    weighted_loss(sure, torch.eye(3)[:2], None, 0.5, 0.1).backward()
    assert sure.grad.isfinite().all()


def test_micro_batches_add_up_to_the_whole_batch():
    criterion = ClassifyCriterion(load_recipe("digits", {"train.focal_gamma": 1}), 5, WEIGHTS)
    parts = [criterion(model_of, batch()[first : first + 4])["loss"] for first in (0, 4)]
    assert torch.allclose(sum(parts) / 2, criterion(model_of, batch())["loss"], atol=1e-6)
