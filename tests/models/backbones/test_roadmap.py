import dataclasses

import pytest
import torch
import torchvision
from helpers import random_model, randomise, relative_error

import convnext
from convnext.errors import UsageError
from convnext.models.backbones.roadmap_steps import STEPS, design, step_names
from convnext.models.load import cost_of
from convnext.paper import published

GROUPS = {"t": "ResNet-50 regime", "b": "ResNet-200 regime"}
NAMES = [name for regime in "tb" for name in step_names(regime)]


@pytest.mark.parametrize("regime", ["t", pytest.param("b", marks=pytest.mark.slow)])
def test_multiply_adds_are_the_published_ones_to_the_second_decimal(regime):
    rows = {row.label: row.values["gmacs"] for row in published.read("roadmap") if row.group == GROUPS[regime]}
    for step, name in zip(STEPS, step_names(regime), strict=True):
        assert f"{cost_of(name).macs / 1e9:.2f}" == f"{rows[step.title]:.2f}", name


@pytest.mark.parametrize("regime", "tb")
def test_a_step_changes_what_it_says_and_nothing_else(regime):
    for number, step in enumerate(STEPS[1:], 1):
        before, after = (dataclasses.asdict(design(n, regime)) for n in (number - 1, number))
        changed = {key for key in before if before[key] != after[key]}
        expected = set(step.change) | ({"width"} if (regime, step.name) == ("b", "stage_ratio") else set())
        assert changed == expected, step.name


def test_the_first_step_is_resnet_50():
    theirs = torchvision.models.resnet50()
    randomise(theirs)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    ours = convnext.create_model("roadmap_t_00_resnet")
    state = ours.state_dict()
    # Both list their layers in the order they run.
    ours.load_state_dict(dict(zip(state, theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 64, 96)
    assert relative_error(ours.eval()(images), theirs.eval()(images)) < 1e-6


@pytest.mark.parametrize(("last", "name"), [(step_names("t")[-1], "convnext_tiny"), (step_names("b")[-1], "convnext_base")])
def test_the_last_step_is_convnext(last, name):
    with torch.device("meta"):
        ours, theirs = (convnext.create_model(each) for each in (last, name))
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_trains(name):
    model = convnext.create_model(name, num_classes=3, width=4, drop_path=0.1, layer_scale=0.5).train()
    maps = model.features(torch.randn(2, 3, 64, 64))
    assert [found.shape[1] for found in maps] == list(model.channels)
    assert [64 // found.shape[-1] for found in maps] == list(model.strides)
    model(torch.randn(4, 3, 64, 64)).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert 0 <= model.layer_group(key) <= model.layer_group("head.weight")


def test_a_narrow_road_shrinks_before_and_after_wider():
    before, after = (random_model(f"roadmap_t_{step}", width=24) for step in ("04_depthwise", "16_separate_downsampling"))
    assert before.channels == (64, 128, 256, 512)  # four times 16, 32, 64, 128
    assert after.channels == (24, 48, 96, 192)


def test_small_images_and_foreign_arguments_are_refused():
    model = convnext.create_model("roadmap_t_03_patchify_stem", width=4)
    with pytest.raises(UsageError, match="at least 32 x 32"):
        model(torch.zeros(1, 3, 31, 64))
    with pytest.raises(UsageError, match="no argument 'width'"):
        convnext.create_model("convnext_tiny", width=4)
