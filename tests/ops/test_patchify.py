"""Patchifying by a product of matrices against PyTorch's convolution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.ops import build, patchify, using

pytestmark = pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")


@pytest.fixture(autouse=True, scope="module")
def operators():
    """The compiled operators wherever they can be, also where PyTorch's are faster."""
    with using(True):
        yield


def _inputs(seed, batch, channels, outputs, patch, height, width):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, channels, height, width), (outputs, channels, patch, patch), (outputs,)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def _with_gradients(run, inputs, seed=1):
    y = run(*inputs)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    return [y, *torch.autograd.grad(y, inputs, towards.to(y.dtype))]


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 20),
    outputs=st.integers(1, 20),
    patch=st.integers(1, 4),
    over=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    last=st.booleans(),
    seed=st.integers(0, 2**30),
)
def test_forward_and_gradients(batch, channels, outputs, patch, over, last, seed):
    """Maps of any size, also those that patches do not fill, in both memory layouts."""
    inputs = _inputs(seed, batch, channels, outputs, patch, patch + over[0], patch + over[1])
    if last:
        inputs[:2] = [one.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for one in inputs[:2]]
    found = _with_gradients(patchify, inputs)
    wanted = _with_gradients(lambda x, weight, bias: F.conv2d(x, weight, bias, patch), [one.double() for one in inputs])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


def test_autocast_and_the_switch():
    inputs = _inputs(0, 2, 96, 48, 2, 14, 15)
    with torch.autocast("cpu", torch.bfloat16):
        found = _with_gradients(patchify, inputs)
        assert type(found[0].grad_fn).__name__ == "PermuteBackward0"
        with using(False):
            wanted = _with_gradients(patchify, inputs)
        assert type(wanted[0].grad_fn).__name__ == "ConvolutionBackward0"
        with torch.no_grad():  # prediction keeps PyTorch's convolution, and its roundings
            assert torch.equal(patchify(*inputs), wanted[0])
    assert [one.dtype for one in found] == [one.dtype for one in wanted] == [torch.bfloat16, *[torch.float32] * 3]
    for one, other in zip(found, wanted, strict=True):
        assert ((one - other).abs().max() / other.abs().max()).item() < 1e-2
