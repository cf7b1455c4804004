"""What docs/migrate/torchvision.md calls the same: learning rates and images."""

import math

import torch
from helpers import sample_image
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR, StepLR
from torchvision.transforms._presets import ImageClassification

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.recipe import load_recipe
from convnext.training.optim import scheduled_rate

PER_EPOCH = 7


def rates(make, epochs):
    """The rate of each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule, found = make(optimizer), []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def ours(epoch, warmup, epochs, *overrides):
    settings = load_recipe("imagenet1k/convnext_tiny", ["optim.lr=1e-3", *overrides]).optim
    return scheduled_rate(epoch * PER_EPOCH, settings, warmup * PER_EPOCH, epochs * PER_EPOCH, PER_EPOCH)


def test_the_cosine_is_the_same_at_the_start_of_each_epoch_after_the_warm_up():
    def make(optimizer):
        warmup = LinearLR(optimizer, start_factor=0.01, total_iters=5)
        return SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, T_max=20 - 5, eta_min=0)], milestones=[5])

    theirs = rates(make, 20)
    for epoch in range(5, 20):
        assert math.isclose(ours(epoch, 5, 20, "optim.min_lr=0"), theirs[epoch], rel_tol=1e-6)


def test_steps_are_the_same():
    theirs = rates(lambda optimizer: StepLR(optimizer, step_size=30, gamma=0.1), 90)
    for epoch in range(90):
        assert math.isclose(ours(epoch, 0, 90, "optim.schedule=step", "optim.milestones=[30,60]"), theirs[epoch], rel_tol=1e-9)


def test_the_ratio_of_the_page_gives_the_same_pixels():
    how = load_recipe("imagenet1k/convnext_tiny", ["eval.crop_ratio=0.9655", "eval.interpolation=bilinear"]).eval
    found = ClassifyPreprocessing(224, how.crop_ratio, interpolation=how.interpolation).transform()
    for size in ((300, 200), (240, 500)):
        image = sample_image(size=size)
        assert torch.allclose(found(image), ImageClassification(crop_size=224, resize_size=232)(image), atol=1e-6)


def test_the_decay_of_the_page_is_theirs_for_a_step():
    """train.py updates the average every 32 steps, with a decay that it adapts to images and epochs."""
    alpha = (1 - 0.99998) * 1024 * 32 / 600
    assert round((1 - alpha) ** (1 / 32), 5) == round(1 - (1 - 0.99998) * 1024 / 600, 5) == 0.99997
