import numpy as np
import pytest
import torch

import convnext
from convnext.errors import UsageError
from convnext.recipe import Optim
from convnext.training.optim import build_optimizer, learning_rate, scheduled_rate


def published_schedule(base, final, epochs, per_epoch, warmup_epochs):
    """The published code's schedule, as an array."""
    warmup = np.linspace(0, base, warmup_epochs * per_epoch)
    rest = np.arange(epochs * per_epoch - len(warmup))
    return np.concatenate([warmup, final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / len(rest)))])


@pytest.mark.parametrize(("epochs", "per_epoch", "warmup"), [(30, 13, 5), (300, 4, 20), (10, 7, 0)])
def test_learning_rate_is_the_published_schedule(epochs, per_epoch, warmup):
    total = epochs * per_epoch
    found = [learning_rate(step, warmup * per_epoch, total, 4e-3, 1e-6) for step in range(total)]
    assert np.allclose(found, published_schedule(4e-3, 1e-6, epochs, per_epoch, warmup), rtol=1e-12)


def test_only_matrices_and_kernels_are_decayed():
    model = convnext.create_model("convnext_atto", num_classes=3)
    optimizer = build_optimizer(model, Optim(weight_decay=0.05, betas=(0.9, 0.99), eps=1e-7, lr=1e-3))
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, rest = optimizer.param_groups if optimizer.param_groups[0]["weight_decay"] else optimizer.param_groups[::-1]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(list(model.parameters()))
    assert all((g["lr"], g["betas"], g["eps"]) == (1e-3, (0.9, 0.99), 1e-7) for g in optimizer.param_groups)


def test_groups_of_one_block_are_refused_for_networks_without_them():
    model = convnext.create_model("upernet_convnext_atto", num_classes=2)
    with pytest.raises(UsageError, match=r"optim\.layer_decay_by=block: only a ConvNeXt that classifies.*not upernet_convnext_atto; use"):
        build_optimizer(model, Optim(layer_decay=0.9, layer_decay_by="block"))


def test_milestones_below_one_are_parts_of_the_run():
    epochs = Optim(lr=1.0, schedule="step", milestones=(16, 22))
    parts = Optim(lr=1.0, schedule="step", milestones=(16 / 24, 22 / 24))
    for step in range(24 * 5):
        assert scheduled_rate(step, parts, 0, 24 * 5, 5) == scheduled_rate(step, epochs, 0, 24 * 5, 5)


def test_the_detectors_schedule_is_that_of_mmdetection_2():
    """A linear warm-up from 0.001 over 500 iterations times the steps, as the paper's code has it; of version 3 see tests/migrate."""
    settings = Optim(lr=2e-4, schedule="step", milestones=(27, 33), warmup_start=0.001)
    for step in (0, 1, 250, 499, 500, 26 * 100, 27 * 100 - 1, 27 * 100, 33 * 100, 36 * 100 - 1):
        factor = 0.001 + (1 - 0.001) * step / 500 if step < 500 else 1.0
        drops = (step >= 2700) + (step >= 3300)
        assert scheduled_rate(step, settings, 500, 3600, 100) == pytest.approx(2e-4 * factor * 0.1**drops, rel=1e-12)


def test_the_segmenters_schedule_is_a_line_to_zero():
    settings = Optim(lr=1e-4, min_lr=0, schedule="linear", warmup_start=1e-6)
    for step in (0, 10, 1499, 1500, 80_000, 159_999):
        regular = 1e-4 * (1 - step / 160_000)
        warm = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1.0
        assert scheduled_rate(step, settings, 1500, 160_000, 1263) == pytest.approx(regular * warm, rel=1e-12)
