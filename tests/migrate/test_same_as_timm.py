"""What docs/migrate/timm.md and official.md call the same: learning rates, groups of parameters, steps, EMA, images."""

import math

import pytest
import timm
import torch
from helpers import sample_image
from timm.data import constants, create_transform
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

import convnext
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.models.weights.formats import FORMATS, renamer, to_native
from convnext.recipe import load_recipe
from convnext.training.optim import build_optimizer, scheduled_rate
from convnext.training.state import new_state

PER_EPOCH = 5
OUR_NAME = renamer([(theirs, ours) for ours, theirs in FORMATS["timm"].table])
SIZES = {"depths": (1, 1, 2, 1), "widths": (8, 16, 24, 32)}


def recipe(*overrides):
    return load_recipe("imagenet1k/convnext_tiny", overrides)


def their_rates(steps, **settings):
    """The rates of timm's schedule, as train.py makes it with --sched-on-updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=4e-3)
    schedule, epochs = create_scheduler_v2(optimizer, step_on_epochs=False, updates_per_epoch=PER_EPOCH, **settings)
    found = []
    for step in range(steps):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found, epochs


def test_a_warm_up_as_prefix_is_added_to_the_epochs_and_the_rates_after_it_are_the_same():
    settings = recipe("optim.lr=4e-3", "optim.min_lr=1e-6").optim
    theirs, epochs = their_rates(60, num_epochs=8, warmup_epochs=4, warmup_prefix=True, min_lr=1e-6)
    assert epochs == 12
    for step in range(20, 60):
        assert math.isclose(scheduled_rate(step, settings, 20, 60, PER_EPOCH), theirs[step], rel_tol=1e-9)


def test_milestones_of_one_epoch_less_are_the_same_after_the_warm_up():
    settings = recipe("optim.lr=4e-3", "optim.schedule=step", "optim.milestones=[5,8]").optim
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=4e-3)
    schedule, _ = create_scheduler_v2(optimizer, "multistep", 12, decay_milestones=[6, 9], decay_rate=0.1, warmup_epochs=4)
    for epoch in range(4, 12):
        schedule.step(epoch)
        for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH):
            assert math.isclose(scheduled_rate(step, settings, 20, 60, PER_EPOCH), optimizer.param_groups[0]["lr"], rel_tol=1e-9)


def by_name(model, groups, rename=lambda name: name):
    names = {id(parameter): rename(name) or name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", ["convnext_tiny", "convnextv2_atto"])
def test_the_groups_of_one_block_are_timms_but_for_the_stem(name):
    settings = recipe("optim.layer_decay=0.8", "optim.layer_decay_by=block", "optim.weight_decay=0.05").optim
    with torch.device("meta"):
        ours, theirs = convnext.create_model(name), timm.create_model(name)
    wanted = by_name(theirs, param_groups_layer_decay(theirs, 0.05, layer_decay=0.8), OUR_NAME)
    found = by_name(ours, build_optimizer(ours, settings).param_groups)
    assert found.keys() == wanted.keys()
    for key, (scale, decay) in found.items():
        stem = 1.25 if key.startswith("downsample_layers.0.") else 1
        assert (scale, decay) == (pytest.approx(wanted[key][0] * stem), wanted[key][1])


# Of convnext_small, by the rule that the paper's code states: 12 groups, of three blocks of the third stage each.
PUBLISHED = {
    "downsample_layers.0.0.weight": 0,
    "stages.0.2.dwconv.weight": 1,
    "downsample_layers.1.1.weight": 2,
    "stages.1.0.pwconv1.weight": 2,
    "downsample_layers.2.1.weight": 3,
    "stages.2.2.pwconv1.weight": 3,
    "stages.2.3.pwconv1.weight": 4,
    "stages.2.26.dwconv.weight": 11,
    "downsample_layers.3.1.weight": 12,
    "stages.3.0.dwconv.weight": 12,
    "head.weight": 13,
}


def test_the_groups_of_layer_decay_are_the_papers():
    with torch.device("meta"):
        model = convnext.create_model("convnext_small")
    found = by_name(model, build_optimizer(model, recipe("optim.layer_decay=0.8").optim).param_groups)
    for key, group in PUBLISHED.items():
        assert found[key] == (pytest.approx(0.8 ** (13 - group)), 0.05)


@pytest.mark.parametrize(("name", "overrides"), [("adamw", ["optim.betas=[0.9,0.99]"]), ("sgd", ["optim.momentum=0.9"])])
def test_optimizers_make_timms_steps(name, overrides):
    settings = recipe(f"optim.name={name}", "optim.lr=0.01", "optim.weight_decay=0.1", *overrides).optim
    theirs = timm.create_model("convnext_tiny", num_classes=3, depths=SIZES["depths"], dims=SIZES["widths"])
    ours = convnext.create_model("convnext_tiny", num_classes=3, weights=theirs.state_dict(), **SIZES)
    made = build_optimizer(ours, settings)
    given = {"betas": (0.9, 0.99)} if name == "adamw" else {"momentum": 0.9}
    reference = create_optimizer_v2(theirs, name, lr=0.01, weight_decay=0.1, **given)
    parameters = dict(ours.named_parameters())
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in theirs.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            parameters[OUR_NAME(key) or key].grad = parameter.grad.clone()
        made.step()
        reference.step()
    wanted = to_native(theirs.state_dict(), "timm")
    for key, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), wanted[key], rtol=1e-5, atol=1e-6)


def test_the_average_of_the_weights_is_timms_once_its_decay_is_reached():
    model = convnext.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), widths=(4, 4, 8, 8))
    state = new_state(model, recipe("train.ema=0.9"), torch.device("cpu"))
    state.ema.n_averaged.fill_(1000)
    theirs = ModelEmaV3(model, decay=0.9)
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        state.ema.update_parameters(model)
        theirs.update(model)
    wanted = theirs.module.state_dict()
    for key, tensor in state.ema_or_model.state_dict().items():
        torch.testing.assert_close(tensor, wanted[key])


def test_images_are_prepared_as_timm_does():
    how, image = recipe("eval.crop_ratio=0.875", "eval.interpolation=bicubic"), sample_image(size=(300, 200))
    assert (how.data.mean, how.data.std) == (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)
    theirs = create_transform(224, interpolation=how.eval.interpolation, crop_pct=how.eval.crop_ratio)
    ours = ClassifyPreprocessing(how.data.image_size, how.eval.crop_ratio, interpolation=how.eval.interpolation).transform()
    assert torch.allclose(ours(image), theirs(image), atol=1e-6)
