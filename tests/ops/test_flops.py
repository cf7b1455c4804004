"""torch.utils.flop_counter counts the fast operators as it counts the PyTorch operators that they replace."""

import pytest
import torch
from helpers import random_model
from torch.utils.flop_counter import FlopCounterMode

import convnext
from convnext import ops
from convnext.models.backbones.convnext import Block
from convnext.ops import build, depthwise, norm
from convnext.ops.block import reference as block_reference

OURS = torch.ops.convnext


def meta(*shape):
    return torch.empty(shape, device="meta", requires_grad=True)


def counted(run, *inputs):
    """Forward, and forward with backward."""
    found = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            out = run(*inputs)
            if backward:
                (out[0] if isinstance(out, tuple) else out).sum().backward()
        found.append(counter.get_total_flops())
    return found


X, CONV, NORM = meta(2, 24, 14, 10), (meta(24, 1, 5, 5), meta(24)), (meta(24), meta(24))
MLP = meta(96, 24), meta(96), meta(24, 96), meta(24), meta(24)
Y = meta(2, 14, 10, 24)


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (
            lambda: counted(lambda *given: OURS.block(*given, None, 1e-6, torch.float32, True), X, *CONV, *NORM, *MLP),
            lambda: counted(lambda x, *given: block_reference(x, ops.Parameters(*given), 1e-6, None), X, *CONV, *NORM, *MLP),
        ),
        (lambda: counted(OURS.depthwise_conv, X, *CONV), lambda: counted(depthwise.reference, X, *CONV)),
        (lambda: counted(OURS.layer_norm, Y, *NORM, 1e-6), lambda: counted(norm.reference, Y, *NORM, 1e-6)),
    ],
    ids=["block", "depthwise", "norm"],
)
def test_an_operator_counts_as_its_reference_forward_and_backward(ours, plain):
    assert ours() == plain()


def test_folded_operators_count_as_the_layers_in_them():
    x, tensors = meta(2, 3, 32, 24), [meta(7, 7, 16)] + [meta(1)] * 6
    stage = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 4, 4), Block(16, 7, 0.0, 1.0)).to("meta")
    with ops.using(False):
        wanted = counted(stage, x)[0]
    with FlopCounterMode(display=False) as counter:
        y = OURS.folded_patchify(x, *[meta(1)] * 4, 1e-6, False, 4, 16)
        OURS.folded_block(y, *tensors[:2], 1e-6, *tensors[2:], 1e-6, 64)
    assert counter.get_total_flops() == wanted
    for of_int8 in (None, meta(1, 3)):
        given = tensors if of_int8 is None else tensors + [meta(1)] * 2
        with FlopCounterMode(display=False) as counter:
            OURS.folded_stage(x, *[meta(1)] * 4, 1e-6, False, 4, 16, given, of_int8, 1e-6, 1e-6, 64)
        assert counter.get_total_flops() == wanted


@pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_a_network_counts_the_same_with_compiled_operators_and_without(name):
    model, x, found = random_model(name, layer_scale=0 if "v2" in name else 1.0), torch.randn(2, 3, 64, 64), []
    for fast in (True, False):
        with ops.using(fast):
            found.append(counted(model, x))
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                model(x)
            assert counter.get_total_flops() == found[-1][0]
    assert found[0] == found[1]
    with ops.using(True), FlopCounterMode(display=False) as counter:
        convnext.optimize(model, "float32")(x)
    assert counter.get_total_flops() == found[1][0]
