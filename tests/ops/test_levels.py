"""Every level of the compiled operators that runs on this CPU, against double precision, and against each other."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from ops.block_tools import GRADIENT, TOLERANCE, parameters, relative, use_level, wide

from convnext import create_model, ops
from convnext.models.backbones.convnext import Block
from convnext.models.optimize.optimize import optimize
from convnext.models.optimize.quantize import Int8Block
from convnext.ops import build
from convnext.ops.block import block, reference
from convnext.ops.depthwise import depthwise_conv
from convnext.ops.norm import layer_norm

LEVELS = build.levels()
INT8_LEVELS = [level for level in LEVELS if build.library_of(level).has_int8]
pytestmark = pytest.mark.skipif(not LEVELS, reason=f"no compiled operators here: {build.reason()}")


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    use_level(request.param, monkeypatch)
    with ops.using(True):
        yield request.param


def with_gradients(function, tensors):
    y = function(*tensors)
    towards = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, tensors, towards)]


@pytest.mark.parametrize(
    ("channels", "kernel", "size"), [(40, 7, (2, 9, 15)), (96, 7, (1, 14, 14)), (24, 3, (3, 5, 4)), (36, 11, (1, 12, 8))]
)
def test_the_block_and_its_gradients(level, channels, kernel, size):
    held = parameters(channels, kernel, 0)
    x = torch.randn(size[0], channels, *size[1:], requires_grad=True)
    found = with_gradients(lambda x, *of: block(x, ops.Parameters(*of), 1e-6, None), [x, *held])
    wanted = with_gradients(lambda x, *of: reference(x, ops.Parameters(*of), 1e-6, None), wide([x, *held]))
    assert relative(found[0], wanted[0]) < TOLERANCE[torch.float32]
    assert all(relative(one, other) < GRADIENT[torch.float32] for one, other in zip(found[1:], wanted[1:], strict=True))


def test_two_threads_share_the_columns_of_a_wide_block(level):
    held, x, before = parameters(512, 7, 0), torch.randn(1, 512, 7, 7), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = with_gradients(lambda x, *of: block(x, ops.Parameters(*of), 1e-6, None), [x.requires_grad_(), *held])
    finally:
        torch.set_num_threads(before)
    wanted = with_gradients(lambda x, *of: reference(x, ops.Parameters(*of), 1e-6, None), wide([x, *held]))
    assert relative(found[0], wanted[0]) < TOLERANCE[torch.float32]
    assert all(relative(one, other) < GRADIENT[torch.float32] for one, other in zip(found[1:], wanted[1:], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [5, 16, 37])
def test_the_convolution_and_the_norm(level, channels, dtype):
    generator = torch.Generator().manual_seed(channels)
    shapes = (2, channels, 11, 13), (channels, 1, 7, 7), (channels,), (channels,)
    x, weight, scale, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    exact, tolerance = x.double(), 2e-6 if dtype == torch.float32 else 5e-3
    convolved = F.conv2d(exact, weight.double(), bias.double(), padding=3, groups=channels)
    assert relative(depthwise_conv(x, weight, bias), convolved) < tolerance
    normal = F.layer_norm(exact.permute(0, 2, 3, 1), (channels,), scale.double(), bias.double(), 1e-6)
    assert relative(layer_norm(x.permute(0, 2, 3, 1).contiguous(), scale, bias, 1e-6), normal) < tolerance


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_optimized_network_for_any_number_of_images_and_threads(level, batch, threads):
    torch.manual_seed(0)
    model = randomise(create_model("convnext_tiny", depths=(1, 1, 2, 1), widths=(40, 64, 96, 512), num_classes=7)).eval()
    x, before = torch.randn(batch, 3, 64, 96), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            found = optimize(model, "float32")(x)
    finally:
        torch.set_num_threads(before)
    with torch.inference_mode(), ops.using(False):
        assert relative(found, model.double()(x.double())) < (2e-5 if build.has_tiles() else 3e-6)


@pytest.mark.skipif(len(INT8_LEVELS) < 2, reason="fewer than two levels here have products of 8 bits")
@pytest.mark.parametrize(("channels", "hidden", "shape"), [(40, 160, (2, 9, 11)), (24, 100, (1, 7, 7)), (512, 2048, (1, 7, 7))])
def test_all_levels_give_nearly_the_same_in_8_bits(channels, hidden, shape, monkeypatch):
    torch.manual_seed(0)
    net = randomise(Block(channels, 7, 0.0, 1.0)).eval()
    net.pwconv1, net.pwconv2 = (randomise(torch.nn.Linear(a, b)) for a, b in ((channels, hidden), (hidden, channels)))
    x, found = torch.randn(shape[0], channels, *shape[1:]), []
    for level in INT8_LEVELS:
        use_level(level, monkeypatch)
        with torch.inference_mode():
            found.append(Int8Block(net, 0.02, 9)(x) - x)
    for other in found[1:]:  # a value halfway between two steps may be rounded either way
        assert relative(other, found[0].double()) < 0.02
