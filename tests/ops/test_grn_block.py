"""The block with GRN (ConvNeXt V2) against plain PyTorch in float64, and where PyTorch computes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.block_tools import GRADIENT, TOLERANCE, needs_compiler, needs_tiles, parameters, relative, wide

from convnext.ops import Grn, Parameters, block, using
from convnext.ops.block import reference, takes
from convnext.ops.interface import KERNELS

DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_tiles)]


@pytest.fixture(autouse=True, scope="module")
def operators():
    """The compiled operators wherever they can be, also where PyTorch's are faster."""
    with using(True):
        yield


def grn_of(hidden, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gamma, beta = (torch.randn(hidden, generator=generator, requires_grad=True) for _ in range(2))
    return Grn(gamma, beta, 1e-6)


def exact(x, held, keep, grn):
    """The block in float64."""
    wide_x, gamma, beta = wide([x, grn.gamma, grn.beta])
    return reference(wide_x, Parameters(*wide(held)), 1e-6, None if keep is None else keep.double(), Grn(gamma, beta, grn.eps)).detach()


def fast(x, held, keep, grn):
    """The block by the compiled operator."""
    with torch.no_grad():
        assert takes(x, held, grn)
        return block(x, held, 1e-6, keep, grn)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(8, 70), st.integers(1, 40), st.integers(1, 40)),
    kernel=st.sampled_from(KERNELS),
    scaled=st.booleans(),
    dropped=st.booleans(),
    seed=st.integers(0, 2**30),
)
def test_a_block_with_grn(dtype, shape, kernel, scaled, dropped, seed):
    held, grn = parameters(shape[1], kernel, seed, scaled=scaled), grn_of(4 * shape[1], seed)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    keep = torch.tensor([0.0, 1.25, 1.25, 0.0, 1.25])[: shape[0]] if dropped else None
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = fast(x, held, keep, grn)
    assert y.dtype == torch.float32
    assert relative(y, exact(x, held, keep, grn)) < TOLERANCE[dtype]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "hidden"), [(24, 96), (48, 100), (10, 7), (64, 256)])
def test_grn_of_any_width_is_over_the_real_channels(dtype, channels, hidden):
    held, grn = parameters(channels, 3, 0, hidden=hidden), grn_of(hidden)
    x = torch.randn(2, channels, 19, 23)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert relative(fast(x, held, None, grn), exact(x, held, None, grn)) < TOLERANCE[dtype]


@needs_compiler
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 17])
def test_bits_depend_neither_on_the_threads_nor_on_the_batch(batch):
    """Threads take whole images, or slabs of the same images."""
    held, grn, x, before, found = parameters(32, 7, 0), grn_of(128), torch.randn(batch, 32, 20, 24), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(fast(x, held, None, grn))
        alone = torch.cat([fast(image[None], held, None, grn) for image in x])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, alone) for one in found)
    assert relative(alone, exact(x, held, None, grn)) < TOLERANCE[torch.float32]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(1, 8, 90, 130), (4, 24, 7, 7), (3, 96, 56, 56)])
def test_maps_of_many_slabs_and_several_maps_of_one(size, threads):
    held, grn, x, before = parameters(size[1], 7, 0), grn_of(4 * size[1]), torch.randn(size), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert relative(fast(x, held, None, grn), exact(x, held, None, grn)) < TOLERANCE[torch.float32]
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_a_map_whose_hidden_values_are_0():
    held, grn, x = parameters(16, 3, 0), grn_of(64), torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        held.w1.zero_()
        held.b1.zero_()
        y = fast(x, held, None, grn)
        branch = held.gamma * (held.w2 @ grn.beta + held.b2)
    assert torch.allclose(y, x + branch.view(1, -1, 1, 1), atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("lay", [lambda x: x[:, :, ::2, 1:], lambda x: x.transpose(2, 3), lambda x: x.flip(0).permute(0, 1, 3, 2)[:, ::2]])
def test_maps_that_lie_otherwise_in_memory(lay):
    x = lay(torch.randn(3, 32, 12, 15))
    held, grn = parameters(x.shape[1], 5, 0), grn_of(4 * x.shape[1])
    assert relative(fast(x, held, None, grn), exact(x, held, None, grn)) < TOLERANCE[torch.float32]


@needs_compiler
def test_nan_stays_in_its_image():
    held, grn, x = parameters(32, 7, 0), grn_of(128), torch.randn(3, 32, 8, 8)
    x[1, 3, 2, 2] = torch.nan
    clean, y = fast(torch.where(x.isnan(), 0, x), held, None, grn), fast(x, held, None, grn)
    assert y[1].isnan().all()  # of a channel's norm, so of all
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@needs_compiler
def test_where_gradients_are_needed_pytorch_computes_it():
    held, grn, keep = parameters(24, 5, 0), grn_of(96), torch.tensor([0.0, 1.25])
    x = torch.randn(2, 24, 7, 9, requires_grad=True)
    assert not takes(x, held, grn)
    assert not takes(x.detach(), held, grn)
    inputs, y = [x, *held, grn.gamma, grn.beta], block(x, held, 1e-6, keep, grn)
    towards = torch.randn(y.shape)
    wide_x, *wide_held, gamma, beta = wide(inputs)
    wanted = reference(wide_x, Parameters(*wide_held), 1e-6, keep.double(), Grn(gamma, beta, grn.eps))
    expected = torch.autograd.grad(wanted, [wide_x, *wide_held, gamma, beta], towards.double())
    for gradient, other in zip(torch.autograd.grad(y, inputs, towards), expected, strict=True):
        assert relative(gradient, other) < GRADIENT[torch.float32]


@needs_compiler
def test_opcheck():
    held, grn, x = parameters(16, 3, 0), grn_of(64), torch.randn(2, 16, 5, 6)
    given = [None if part is None else part.detach() for part in (x, *held)]
    operator = torch.ops.convnext.grn_block.default
    torch.library.opcheck(operator, (*given, None, 1e-6, torch.float32, grn.gamma.detach(), grn.beta.detach(), grn.eps))
