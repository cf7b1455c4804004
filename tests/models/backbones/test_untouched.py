"""A block is computed as one only where nobody looks into it or has changed what is in it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as globally
from torch.nn.utils import parametrize, prune

from convnext import ops
from convnext.models.backbones.convnext import Block, ConvNeXt, DepthwiseConv
from convnext.models.backbones.untouched import watched

PARTS = ("dwconv", "norm", "pwconv1", "pwconv2", "drop_path")


def block(grn=False):
    torch.manual_seed(0)
    return Block(8, 3, 0.0, 1.0, grn=grn).eval()


def result(module):
    """By the compiled operators, where there are some."""
    x = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(1))
    with ops.using(True), torch.no_grad():
        return module(x)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Other(nn.Linear):
    """A layer of a class of its own."""


def patch(part):
    inner, calls = part.forward, []
    part.forward = lambda *given: calls.append(1) or 2 * inner(*given)
    return calls


def test_a_block_as_it_was_made_is_whole():
    assert block().fusable() is not None
    assert not watched()


@pytest.mark.parametrize("part", [*PARTS, "grn"])
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook"]
)
def test_hooks(part, register):
    one = block(grn=part == "grn")
    handle = getattr(one.get_submodule(part), register)(lambda *_: None)
    assert one.fusable() is None
    handle.remove()
    assert one.fusable() is not None


@pytest.mark.parametrize("part", [*PARTS, "grn"])
def test_a_forward_that_was_replaced_on_the_instance_is_called(part):
    one, usual = block(part == "grn"), result(block(part == "grn"))
    calls = patch(one.get_submodule(part))
    assert one.fusable() is None
    assert not torch.allclose(result(one), usual)
    assert calls == [1]


def test_a_forward_that_was_replaced_on_the_class_is_called(monkeypatch):
    one, usual, inner = block(), result(block()), nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * inner(self, x))
    assert one.fusable() is None
    assert not torch.allclose(result(one), usual)


def test_a_call_that_was_replaced_for_all_modules_is_called(monkeypatch):
    one, called, inner = block(), [], nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *given: called.append(type(self)) or inner(self, *given))
    result(one)
    assert DepthwiseConv in called
    assert called.count(nn.Linear) == 2


@pytest.mark.parametrize(
    "register",
    [
        "register_module_forward_hook",
        "register_module_forward_pre_hook",
        "register_module_full_backward_hook",
        "register_module_full_backward_pre_hook",
    ],
)
def test_hooks_on_all_modules_see_every_part(register):
    one, seen = block(), []
    handle = getattr(globally, register)(lambda module, *_: seen.append(type(module)))
    try:
        assert watched()
        with ops.using(True):
            one(torch.randn(2, 8, 12, 12, requires_grad=True)).sum().backward()
    finally:
        handle.remove()
    assert not watched()
    assert {DepthwiseConv, nn.Linear} <= set(seen)


@pytest.mark.parametrize("part", ["dwconv", "norm", "pwconv1", "pwconv2"])
def test_parametrized_weights(part):
    one, usual = block(), result(block())
    parametrize.register_parametrization(one.get_submodule(part), "weight", Doubled())
    assert one.fusable() is None
    assert not torch.allclose(result(one), usual)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: setattr(one, "pwconv1", Other(8, 32)),
        lambda one: setattr(one, "pwconv2", nn.Sequential(one.pwconv2)),
        lambda one: setattr(one, "pwconv1", nn.Linear(8, 32, bias=False)),
        lambda one: setattr(one, "drop_path", nn.Identity()),
        lambda one: one.pwconv1.compile(backend="eager"),
        lambda one: nn.utils.parametrizations.weight_norm(one.pwconv1),
        lambda one: prune.l1_unstructured(one.pwconv1, "weight", 0.5),
    ],
    ids=["a subclass", "a wrapper", "no bias", "another drop path", "compiled in place", "weight norm", "pruned"],
)
def test_other_changes(change):
    one = block()
    change(one)
    assert one.fusable() is None
    assert result(one).isfinite().all()


def test_a_convolution_of_another_shape_is_what_it_says():
    one, x = block().dwconv, torch.randn(2, 8, 12, 12)
    one.dilation, one.padding = (2, 2), (2, 2)
    with ops.using(True):
        assert torch.equal(one(x), F.conv2d(x, one.weight, one.bias, padding=2, dilation=2, groups=8))


def test_hooks_on_a_stage_see_it():
    network, seen = ConvNeXt((1, 1, 2, 1), (8, 8, 8, 8), num_classes=2), []
    for i, stage in enumerate(network.stages):
        stage.register_forward_hook(lambda module, given, result, i=i: seen.append(i))
    network.eval()(torch.randn(1, 3, 64, 64))
    assert seen == [0, 1, 2, 3]
