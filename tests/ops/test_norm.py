"""LayerNorm against PyTorch's, over random shapes and dtypes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.ops import build, layer_norm, using

needs_compiler = pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True, scope="module")
def operators():
    """The compiled operators wherever they can be, also where PyTorch's are faster."""
    with using(True):
        yield


def relative(found, wanted):
    return ((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)).item()


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    channels=st.integers(2, 100),
    dtype=st.sampled_from(list(TOLERANCE)),
    mean=st.floats(-30, 30),
    seed=st.integers(0, 2**30),
)
def test_forward_and_gradients(shape, channels, dtype, mean, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(*shape, channels, generator=generator) + mean).to(dtype).requires_grad_()
    weight, bias = torch.randn(2, channels, generator=generator).to(dtype).unbind()
    inputs = [x, weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    y = layer_norm(*inputs, 1e-6)
    assert y.dtype == dtype
    towards = torch.randn(y.shape, generator=generator).to(dtype)
    found = torch.autograd.grad(y, inputs, towards)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    wanted_y = F.layer_norm(wide[0], (channels,), wide[1], wide[2], 1e-6)
    wanted = torch.autograd.grad(wanted_y, wide, towards.double())
    # The rounding of a mean is magnified where channels are nearly equal beside it.
    magnified = (x.detach().abs().amax(-1) / x.detach().float().std(-1, unbiased=False)).max().item()
    tolerance = TOLERANCE[dtype] + (2**-22 * magnified if dtype == torch.float32 else 0)
    assert relative(y, wanted_y) < tolerance
    # Two channels with one distance may even swap their gradient's sign.
    for gradient, expected in zip(found[1:] if channels < 8 else found, wanted[1:] if channels < 8 else wanted, strict=True):
        if dtype == torch.float32 or gradient is not found[0]:
            assert relative(gradient, expected) < 5 * tolerance


@needs_compiler
def test_small_values_beside_a_large_mean_are_kept():
    x = torch.tensor([[1000.0, 1000.5, 1001.0, 1001.5]])
    one, zero = torch.ones(4), torch.zeros(4)
    assert torch.allclose(layer_norm(x, one, zero, 1e-6), F.layer_norm(x.double(), (4,)).float(), atol=1e-4)


@needs_compiler
def test_gradients_do_not_depend_on_the_number_of_threads():
    x, weight, bias = torch.randn(5, 77, 48), torch.randn(48, requires_grad=True), torch.randn(48)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.autograd.grad(layer_norm(x, weight, bias, 1e-6).square().sum(), weight)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_compiler
def test_opcheck():
    x, weight = torch.randn(3, 4, 10, requires_grad=True), torch.randn(2, 10, requires_grad=True)
    torch.library.opcheck(torch.ops.convnext.layer_norm.default, (x, *weight.unbind(), 1e-6))


def test_the_reference_has_the_gradients_of_its_function():
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (5,), (5,)))
    assert torch.autograd.gradcheck(lambda *tensors: layer_norm(*tensors, 1e-6), (x, weight, bias))
