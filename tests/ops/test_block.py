"""The block against plain PyTorch in float64, forward and all gradients, over random shapes, kernels and dtypes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.block_tools import GRADIENT, TOLERANCE, needs_compiler, needs_tiles, parameters, relative, wide

from convnext.errors import ConvnextError
from convnext.ops import Parameters, block, inference, native, using
from convnext.ops.block import reference, takes
from convnext.ops.interface import KERNELS, SPLIT


@pytest.fixture(autouse=True, scope="module")
def operators():
    """The compiled operators wherever they can be, also where PyTorch's are faster."""
    with using(True):
        yield


def check(found_y, found, wanted_y, wanted, dtype):
    assert relative(found_y, wanted_y) < TOLERANCE[dtype]
    for i, (gradient, expected) in enumerate(zip(found, wanted, strict=True)):
        assert relative(gradient, expected) < GRADIENT[dtype], i


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_tiles)])
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(8, 70), st.integers(1, 12), st.integers(1, 18)),
    kernel=st.sampled_from(KERNELS),
    scaled=st.booleans(),
    dropped=st.booleans(),
    seed=st.integers(0, 2**30),
)
def test_block_and_its_gradients(dtype, shape, kernel, scaled, dropped, seed):
    held = parameters(shape[1], kernel, seed, scaled=scaled)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    keep = torch.tensor([0.0, 1.25, 1.25])[: shape[0]] if dropped else None
    inputs = [x, *(parameter for parameter in held if parameter is not None)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert takes(x, held)
        y = block(x, held, 1e-6, keep)
    assert y.dtype == torch.float32
    towards = torch.randn(shape)
    found = torch.autograd.grad(y, inputs, towards)
    wide_x, *wide_held = wide([x, *held])
    wanted_y = reference(wide_x, Parameters(*wide_held), 1e-6, None if keep is None else keep.double())
    wanted = torch.autograd.grad(wanted_y, [wide_x, *(parameter for parameter in wide_held if parameter is not None)], towards.double())
    if dropped and shape[0] == 1:
        return check(y, found[:1], wanted_y, wanted[:1], dtype)  # all is dropped: the parameters' gradients are 0
    return check(y, found, wanted_y, wanted, dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_tiles)])
@pytest.mark.parametrize("size", [(2, 7, 5), (3, 16, 9), (1, 1, 1), (2, 40, 30)])
@pytest.mark.parametrize(("channels", "hidden"), [(24, 96), (48, 100), (10, 7), (64, 256)])
def test_hidden_layers_of_any_width(dtype, size, channels, hidden):
    held = parameters(channels, 3, 0, hidden=hidden)
    x, keep = torch.randn(size[0], channels, *size[1:], requires_grad=True), torch.rand(size[0]) + 0.5
    inputs = [x, *held]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert takes(x, held)
        out = block(x, held, 1e-6, keep)
    towards = torch.randn(out.shape)
    found = torch.autograd.grad(out, inputs, towards)
    wide_x, *wide_held = wide(inputs)
    wanted_out = reference(wide_x, Parameters(*wide_held), 1e-6, keep.double())
    wanted = torch.autograd.grad(wanted_out, [wide_x, *wide_held], towards.double())
    check(out, found, wanted_out, wanted, dtype)


def error_of_products(products, depth, outputs):
    """The largest error of a product of random float32 matrices of these sides, relative to the largest value."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, depth, 9, 11), torch.randn(outputs, depth, 1, 1) * depth**-0.5, torch.randn(outputs)
    packed = inference.packed_patches(weight, bias, False, products)
    found = inference.patchify_forward(x, inference.PackedPatchify(*packed, None, None, 0.0, False, 1, outputs))
    return relative(found, torch.nn.functional.conv2d(x.double(), weight.double(), bias.double()))


SIDES = [(16, 32), (96, 384), (384, 96), (1024, 40), (37, 5)]


@needs_compiler
@pytest.mark.parametrize(("depth", "outputs"), SIDES)
def test_products_of_float32_keep_its_digits(depth, outputs):
    assert error_of_products(torch.float32, depth, outputs) < 2e-6


@needs_tiles
@pytest.mark.parametrize(("depth", "outputs"), SIDES)
def test_products_of_split_float32_keep_16_bits_and_those_of_bf16_do_not(depth, outputs):
    assert 2e-6 < error_of_products(SPLIT, depth, outputs) < 2e-5
    assert 2e-4 < error_of_products(torch.bfloat16, depth, outputs) < 2e-2


@needs_tiles
def test_a_network_of_bf16_stays_bf16():
    held = Parameters(*(None if part is None else part.detach().bfloat16() for part in parameters(32, 7, 0)))
    x = torch.randn(2, 32, 9, 9).bfloat16()
    y = block(x, held, 1e-6, None)
    assert y.dtype == torch.bfloat16
    assert relative(y, reference(*wide([x]), Parameters(*wide(held)), 1e-6, None).detach()) < 1e-2


@needs_compiler
def test_a_second_derivative_is_refused_and_not_wrong():
    held = parameters(16, 3, 0)
    x = torch.randn(1, 16, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x, held, 1e-6, None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), x)
    with using(False):
        (gradient,) = torch.autograd.grad(block(x, held, 1e-6, None).square().sum(), x, create_graph=True)
        assert torch.autograd.grad(gradient.sum(), x)[0].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("side", [6, 20])  # few positions, whose threads share the columns, and many
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_for_one_call_give_the_bits_of_packed_weights(side, transposed):
    threads = torch.get_num_threads()
    channels = 300  # 2.9 MB of weights, not a multiple of 32
    *conv, norm_weight, norm_bias, w1, b1, w2, b2, gamma = (part.detach() for part in parameters(channels, 7, 0) if part is not None)
    if transposed:
        w1, w2 = w1.T.contiguous().T, w2.T.contiguous().T
    x = torch.randn(1, channels, side, side)
    mlp = (w1, b1, w2, b2, gamma, (norm_weight, norm_bias), torch.float32)
    try:
        torch.set_num_threads(2)
        packed, loose = (
            native.block_forward(x, native.taps_of(conv[0]), conv[1], 1e-6, native.pack_mlp(*mlp, once=once), None, False)[0]
            for once in (False, True)
        )
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(packed, loose)


@needs_compiler
def test_an_unsupported_kernel_size_is_reported():
    x, held = torch.randn(1, 8, 5, 5), parameters(8, 3, 0)
    with pytest.raises(ConvnextError, match="block_forward has no kernel of this size: use one of 3, 5, 7, 9, 11"):
        native.block_forward(x, torch.randn(13, 13, 8), None, 1e-6, native.pack_mlp(*held[4:], held[2:4], x.dtype), None, False)
    with pytest.raises(ConvnextError, match="depthwise_forward has no kernel of this size"):
        native.depthwise_forward(x, torch.randn(8, 1, 4, 4), None)


@needs_compiler
def test_nan_stays_in_its_image():
    held, x = parameters(32, 7, 0), torch.randn(3, 32, 8, 8)
    x[1, 3, 2, 2] = torch.nan
    clean = block(torch.where(x.isnan(), 0, x), held, 1e-6, None)
    y = block(x, held, 1e-6, None)
    assert y[1].isnan().any()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads():
    held, x = parameters(32, 7, 0), torch.randn(3, 32, 20, 20)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(block(x, held, 1e-6, None).detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_compiler
def test_opcheck():
    held, x = parameters(16, 3, 0), torch.randn(2, 16, 5, 6, requires_grad=True)
    torch.library.opcheck(torch.ops.convnext.block.default, (x, *held, None, 1e-6, torch.float32, True))
