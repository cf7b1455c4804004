"""Optimized networks whose blocks differ from each other, or that int8 does not quantize."""

import pytest
import torch
from helpers import random_model, randomise, relative_error
from models.optimize.bounds import bound, compiled, outputs, tiles

import convnext
from convnext.errors import UsageError
from convnext.models.backbones.convnext import Block
from convnext.models.optimize.optimize import fastest
from convnext.models.optimize.quantize import Int8Block


@compiled
@pytest.mark.parametrize(
    "change",
    [
        lambda stage: setattr(stage[1].norm, "eps", 0.5),
        lambda stage: setattr(stage[1].grn, "eps", 0.5),
        lambda stage: stage.append(randomise(Block(96, 5, 0.0, 0.0, grn=True))),
        lambda stage: stage.append(randomise(Block(96, 7, 0.0, 0.0))),
    ],
    ids=["eps", "eps of GRN", "kernel", "without GRN"],
)
def test_blocks_of_a_stage_that_differ_stay_what_they_are(change):
    model, x = random_model("convnextv2_tiny", depths=(2, 1, 1, 1), layer_scale=0), torch.randn(2, 3, 64, 96)
    change(model.stages[0])
    assert relative_error(outputs(convnext.optimize(model, "float32"), x, True), outputs(model, x, False)) < bound("float32")


def test_int8_refuses_a_network_whose_blocks_all_have_grn():
    with pytest.raises(UsageError, match="int8 quantizes no blocks with GRN, and this network") as refused:
        convnext.optimize(random_model("convnextv2_atto", layer_scale=0), "int8", calibration=lambda network: None)
    assert (fastest() or "do not optimize") in str(refused.value)


@tiles
def test_int8_leaves_blocks_with_grn_in_bf16_and_says_so():
    model, x = random_model("convnext_tiny", depths=(1, 1, 1, 1)), torch.randn(4, 3, 64, 96)
    model.stages[1] = torch.nn.Sequential(randomise(Block(192, 7, 0.0, 0.0, grn=True)))
    with pytest.warns(UserWarning, match="int8 quantizes no blocks with GRN: 1 of 4 stay in bf16"):
        optimized = convnext.optimize(model, "int8", calibration=lambda network: network(x))
    assert sum(isinstance(module, Int8Block) for module in optimized.modules()) == 3
    assert relative_error(outputs(optimized, x, True), outputs(model, x, False)) < bound("int8")
