"""The optimized network against the original: the same function for every task, and clear errors where it can't be optimized."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import random_model, randomise, relative_error
from models.optimize.bounds import FLOAT32_ERROR, bound, compiled, int8, outputs, tiles

import convnext
from convnext import ops
from convnext.errors import UsageError
from convnext.models.backbones.convnext import Block
from convnext.models.optimize.folded import FoldedBlock, FoldedPatchify, FoldedStage
from convnext.models.optimize.optimize import engine_for, fastest
from convnext.models.optimize.quantize import Int8Block, calibrate
from convnext.models.optimize.sliced import SlicedBlock
from convnext.ops import build, dispatch


@pytest.fixture(autouse=True, scope="module")
def operators():
    """The compiled operators wherever they can be, also where PyTorch's are faster."""
    with ops.using(True):
        yield


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("convnext_atto", {}),  # widths that are not multiples of 16: some layers stay
        ("convnext_tiny", {"depths": (1, 1, 2, 1)}),
        ("convnext_tiny", {"depths": (1, 1, 1, 1), "layer_scale": 0, "kernel_size": 5}),
        ("convnext_tiny", {"depths": (1, 1, 1, 1), "kernel_size": 13}),  # a kernel without an operator
        ("convnext_isotropic_small", {"depth": 2}),
        ("convnextv2_atto", {"layer_scale": 0}),
        ("convnextv2_tiny", {"depths": (1, 1, 2, 1), "layer_scale": 0, "kernel_size": 5}),
        ("convnext_tiny", {"depths": (1, 1, 1, 1), "grn": True}),  # with a layer scale too
        ("convnextv2_tiny", {"depths": (1, 1, 1, 1), "layer_scale": 0, "kernel_size": 13}),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_outputs_stay_those_of_the_network(name, arguments, precision, fast):
    torch.manual_seed(0)
    model, x = random_model(name, **arguments).eval(), torch.randn(2, 3, 97, 70)
    wanted = outputs(model, x, False)
    with ops.using(fast):
        optimized = convnext.optimize(model, precision)
    found = outputs(optimized, x, fast)
    assert found.dtype == torch.float32
    error = relative_error(found, wanted)
    assert error < bound(precision, fast)
    if precision == "float32" and fast and build.has_tiles():
        assert error > FLOAT32_ERROR  # so the bounds tell both kinds of products apart
    assert torch.equal(outputs(model, x, False), wanted)  # the original is unchanged


@compiled
def test_the_blocks_and_patchifying_layers_are_compiled_ones():
    optimized = convnext.optimize(random_model("convnext_tiny", depths=(1, 1, 1, 1)), "float32")
    kinds = [type(module) for module in optimized.modules()]
    assert kinds.count(FoldedBlock) == 4
    assert kinds.count(FoldedPatchify) == 4


def test_without_compiled_operators_blocks_are_sliced():
    with ops.using(False):
        optimized = convnext.optimize(random_model("convnext_tiny", depths=(1, 1, 1, 1)), "bf16")
    assert sum(isinstance(module, SlicedBlock) for module in optimized.modules()) == 4


@pytest.mark.parametrize("name", ["mask_rcnn_convnext_atto", "upernet_convnext_atto"])
def test_maps_under_detectors_and_segmenters(name):
    torch.manual_seed(0)
    model = randomise(convnext.create_model(name, num_classes=3)).eval()
    optimized, x = convnext.optimize(model), torch.randn(1, 3, 96, 64)
    with torch.inference_mode(), ops.using(False):
        wanted = model.backbone.features(x)
    with torch.inference_mode():
        found = optimized.backbone.features(x)
        optimized([x[0]] if name.startswith("mask") else x)
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other) < bound(fastest() or "float32")


@int8
@pytest.mark.parametrize("name", ["mask_rcnn_convnext_atto", "upernet_convnext_atto"])
def test_int8_under_detectors_and_segmenters(name):
    torch.manual_seed(0)
    model, x = randomise(convnext.create_model(name, num_classes=3)).eval(), torch.randn(2, 3, 96, 64)
    optimized = convnext.optimize(model, "int8", calibration=lambda network: network(list(x) if name.startswith("mask") else x))
    count = sum(isinstance(module, Block) for module in model.modules())
    assert sum(isinstance(module, Int8Block) for module in optimized.modules()) == count
    with torch.inference_mode(), ops.using(False):
        wanted = model.backbone.features(x)
    with torch.inference_mode():
        found = optimized.backbone.features(x)
    assert all(relative_error(one, other) < bound("int8") for one, other in zip(found, wanted, strict=True))


@compiled
@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=tiles), pytest.param("int8", marks=int8)])
@pytest.mark.parametrize("arguments", [{}, {"kernel_size": 3, "layer_scale": 0}, {"widths": (40, 64, 80, 96)}, {"grn": True}])
def test_a_whole_stage_at_once_gives_the_same_bits(precision, arguments, monkeypatch):
    if precision == "int8" and "grn" in arguments:
        pytest.skip("blocks with GRN are not quantized")
    model, x = random_model("convnext_tiny", **{"depths": (3, 2, 1, 2)} | arguments), torch.randn(18, 3, 97, 70)
    optimized = convnext.optimize(model, precision, calibration=lambda network: network(x[:2]))
    assert sum(isinstance(module, FoldedStage) for module in optimized.modules()) >= 2
    whole = [outputs(optimized, x[:count], True) for count in (1, 3, 18)]
    monkeypatch.setattr(FoldedStage, "forward", lambda self, x: self.blocks(self.before(x)))
    for found in whole:
        assert torch.equal(found, outputs(optimized, x[: len(found)], True))


@compiled
@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=tiles)])  # PyTorch's own bf16 depends on the batch
def test_a_batch_gives_each_image_what_it_gets_alone(precision):
    optimized, x = convnext.optimize(random_model("convnext_tiny", depths=(1, 1, 1, 1)), precision), torch.randn(5, 3, 64, 96)
    whole = outputs(optimized, x, True)
    assert torch.allclose(whole, torch.cat([outputs(optimized, image[None], True) for image in x]), atol=1e-5)


@int8
def test_int8_stays_near_and_needs_images():
    model, x = random_model("convnext_tiny", depths=(1, 1, 2, 1)), torch.randn(4, 3, 64, 96)
    optimized = convnext.optimize(model, "int8", calibration=lambda network: network(x))
    assert sum(isinstance(module, Int8Block) for module in optimized.modules()) == 5
    assert relative_error(outputs(optimized, x, True), outputs(model, x, False)) < 0.05
    for nothing in (None, lambda network: None):
        with pytest.raises(UsageError, match="calibrate"):
            convnext.optimize(model, "int8", calibration=nothing)


def quantized_branch(block, x, scale, zero):
    """What the block in 8 bits computes, in plain PyTorch."""
    y = block.dwconv(x).permute(0, 2, 3, 1)
    y = y - y.mean(-1, keepdim=True)
    std = (y.square().mean(-1, keepdim=True) + block.norm.eps).sqrt()
    of_y = y.abs().amax(-1, keepdim=True) / 127
    w1, w2 = block.pwconv1.weight * block.norm.weight, block.pwconv2.weight * block.gamma.unsqueeze(1)
    b1 = block.pwconv1.bias + block.pwconv1.weight @ block.norm.bias
    of_1, of_2 = w1.abs().amax(1) / 127, w2.abs().amax(1) / 127
    z = (y / of_y).round() @ (w1 / of_1[:, None]).round().T * of_1 * of_y / std + b1
    hidden = ((torch.nn.functional.gelu(z) / scale).round() + zero).clamp(0, 255) - zero
    branch = hidden @ (w2 / of_2[:, None]).round().T * of_2 * scale + block.pwconv2.bias * block.gamma
    return branch.permute(0, 3, 1, 2)


@int8
@pytest.mark.parametrize(("channels", "hidden"), [(40, 160), (24, 100), (64, 256)])
@pytest.mark.parametrize("loudness", [0.02, 1.0, 30.0])  # of hidden values: their scale decides the fixed-point format of GELU
def test_int8_of_any_width_is_the_quantized_function(channels, hidden, loudness):
    torch.manual_seed(0)
    block = randomise(Block(channels, 7, 0.0, 1.0)).eval()
    block.pwconv1, block.pwconv2 = (randomise(torch.nn.Linear(a, b)) for a, b in ((channels, hidden), (hidden, channels)))
    x = torch.randn(2, channels, 9, 11)
    with torch.inference_mode(), ops.using(False):
        block.pwconv1.weight.mul_(loudness)
        scale, zero = calibrate(torch.nn.Sequential(block), lambda network: network(x))["0"]
        found = Int8Block(block, scale, zero)(x) - x
        wanted, exact = quantized_branch(block, x, scale, zero), block(x) - x
    assert (
        relative_error(found, wanted) < 0.02
    )  # part of GELU comes from a table, and a value halfway between two may be rounded either way
    assert relative_error(found, exact) < 0.04


@compiled
@pytest.mark.parametrize("grn", [False, True])
def test_it_compiles_in_one_graph(grn):
    optimized, x = (
        convnext.optimize(random_model("convnext_tiny", depths=(1, 1, 1, 1), grn=grn), backend="convnext"),
        torch.randn(2, 3, 64, 64),
    )
    with torch.inference_mode():
        assert relative_error(torch.compile(optimized, backend="aot_eager", fullgraph=True)(x), optimized(x)) < 1e-3


def test_errors_name_what_is_wrong():
    model = random_model("convnext_atto")
    with pytest.raises(UsageError, match="bf16"):
        convnext.optimize(model, "bf61")
    with pytest.raises(UsageError, match="float32 network"):
        convnext.optimize(random_model("convnext_atto").bfloat16())
    with pytest.raises(UsageError, match="no block of ConvNeXt"):
        convnext.optimize(convnext.create_model("resnet50"))
    with pytest.raises(UsageError, match="--device cpu"):  # as where the fastest device is a GPU
        convnext.optimize(random_model("convnext_atto").to("meta"))


def kinds_of(model):
    return {type(module) for module in model.modules()}


def test_by_default_the_fastest_is_chosen_for_this_cpu():
    model = random_model("convnext_tiny", depths=(1, 1, 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kinds, products = kinds_of(convnext.optimize(model)), None
        if FoldedBlock in kinds:
            (products,) = {module.first.dtype for module in convnext.optimize(model).modules() if isinstance(module, FoldedBlock)}
    if engine_for(model) is not None:
        assert kinds == kinds_of(convnext.optimize(model, backend="openvino"))
    elif build.has_tiles():
        assert products == torch.bfloat16
    elif build.library() is not None and not dispatch.has_amx():
        assert products == torch.float32
    elif not dispatch.has_amx():
        assert fastest() is None
        assert kinds == kinds_of(model)  # nothing is faster there than the unchanged network


@pytest.mark.skipif(dispatch.has_amx(), reason="this CPU has AMX, where bf16 is fast")
def test_bf16_without_amx_warns():
    model = random_model("convnext_tiny", depths=(1, 1, 1, 1))
    with pytest.warns(UserWarning, match=r"bf16 is slower than float32 .* no AMX") as warned:
        convnext.optimize(model, "bf16")
    assert len(warned) == 1
    assert warned[0].filename == __file__


@pytest.mark.skipif(build.has_int8(), reason="the operators here have products of 8 bits")
def test_int8_names_another_precision_where_there_is_none():
    model = random_model("convnext_tiny", depths=(1, 1, 1, 1))
    with pytest.raises(UsageError, match="VNNI") as refused:
        convnext.optimize(model, "int8", calibration=lambda network: None)
    assert ("use float32" if build.library() is not None else "do not optimize") in str(refused.value)
    assert "bf16" not in str(refused.value)


def test_the_default_without_operators_is_the_network_as_it_is():
    model, x = random_model("convnext_tiny", depths=(1, 1, 1, 1)), torch.randn(1, 3, 64, 64)
    with ops.using(False):
        optimized = convnext.optimize(model)
    if not dispatch.has_amx():
        assert kinds_of(optimized) == kinds_of(model)
        assert torch.equal(outputs(optimized, x, False), outputs(model, x, False))
    assert not any(parameter.requires_grad for parameter in optimized.parameters())


class Adapter(torch.nn.Module):
    """A low-rank adapter that has the weights of the layer it replaces as its own attributes, as many do."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x):
        return 2 * self.base(x)


def patched(part):
    inner = part.forward
    part.forward = lambda x: 2 * inner(x)
    return part


@pytest.mark.parametrize("change", [Adapter, patched])
@pytest.mark.parametrize("precision", ["bf16", "float32", pytest.param("int8", marks=int8)])
def test_a_block_that_was_changed_stays(change, precision):
    torch.manual_seed(0)
    model, x = random_model("convnext_tiny", depths=(1, 2, 1, 1)), torch.randn(2, 3, 64, 64)
    plain = outputs(model, x, False)
    model.stages[1][1].pwconv2 = change(model.stages[1][1].pwconv2)
    wanted, optimized = outputs(model, x, False), convnext.optimize(model, precision, calibration=lambda network: network(x))
    assert type(optimized.stages[1][-1]) is Block
    assert relative_error(outputs(optimized, x, True), wanted) < bound(precision)
    assert relative_error(plain, wanted) > 0.1


def test_hooks_on_stages_and_layers_stay():
    model, x, seen = random_model("convnext_tiny", depths=(1, 2, 1, 1)), torch.randn(2, 3, 64, 64), []
    for name in ("stages.0", "stages.2", "downsample_layers.1", "downsample_layers.2.1", "stages.1.0.norm"):
        model.get_submodule(name).register_forward_hook(lambda module, given, result, name=name: seen.append(name))
    outputs(convnext.optimize(model, "float32"), x, True)
    assert sorted(seen) == ["downsample_layers.1", "downsample_layers.2.1", "stages.0", "stages.1.0.norm", "stages.2"]


def test_switched_off_all_works_and_info_says_so():
    code = """
import torch, convnext
from convnext.cli import main
print(convnext.create_model("convnext_atto", num_classes=2)(torch.randn(1, 3, 64, 64)).shape)
main()
"""
    command = [sys.executable, "-c", code, "info"]
    done = subprocess.run(command, env=os.environ | {"CONVNEXT_OPS": "off"}, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("torch.Size([1, 2])"), done.stderr
    assert "switched off" in done.stdout
    assert "  compiled " not in done.stdout
