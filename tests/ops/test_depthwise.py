"""The depthwise convolution against F.conv2d and its gradients against autograd's, over random shapes, kernels, dtypes and layouts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.ops import build, depthwise_conv, dispatch, using
from convnext.ops.depthwise import reference
from convnext.ops.interface import KERNELS

needs_compiler = pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative to the largest value of the float32 result


@pytest.fixture(autouse=True, scope="module")
def operators():
    """The compiled operators wherever they can be, also where PyTorch's are faster."""
    with using(True):
        yield


def relative(found, wanted):
    return ((found.float() - wanted.float()).abs().max() / wanted.abs().max().clamp_min(1e-6)).item()


def drawn(shape, dtype, layout, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if layout == "strided":  # every second channel of a wider map
        return torch.cat([x, x], 1)[:, ::2] if shape[1] % 2 == 0 else x.repeat_interleave(2, 1)[:, ::2]
    return x.contiguous(memory_format=torch.channels_last) if layout == "nhwc" else x


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 19), st.integers(1, 33)),
    kernel=st.sampled_from(KERNELS),
    dtype=st.sampled_from(list(TOLERANCE)),
    layout=st.sampled_from(["nchw", "nhwc", "strided"]),
    bias=st.booleans(),
    seed=st.integers(0, 2**30),
)
def test_forward_and_gradients_are_those_of_a_grouped_convolution(shape, kernel, dtype, layout, bias, seed):
    x = drawn(shape, dtype, layout, seed).requires_grad_()
    channels = shape[1]
    weight = drawn((channels, 1, kernel, kernel), dtype, "nchw", seed + 1).requires_grad_()
    shift = drawn((channels,), dtype, "nchw", seed + 2).requires_grad_() if bias else None
    y = depthwise_conv(x, weight, shift)
    assert y.dtype == dtype
    assert y.permute(0, 2, 3, 1).is_contiguous()
    towards = drawn(tuple(y.shape), dtype, "nchw", seed + 3)
    inputs = [tensor for tensor in (x, weight, shift) if tensor is not None]
    found = torch.autograd.grad(y, inputs, towards)

    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    wanted_y = F.conv2d(wide[0], wide[1], wide[2] if bias else None, padding=kernel // 2, groups=channels)
    wanted = torch.autograd.grad(wanted_y, wide, towards.double())
    assert relative(y, wanted_y) < TOLERANCE[dtype]
    for gradient, expected, of in zip(found, wanted, inputs, strict=True):
        assert gradient.dtype == of.dtype
        assert relative(gradient, expected) < TOLERANCE[dtype]


@needs_compiler
def test_the_compiled_operator_is_what_ran():
    x, weight = torch.randn(1, 8, 5, 5), torch.randn(8, 1, 3, 3, requires_grad=True)
    assert "convnext" in type(depthwise_conv(x, weight, None).grad_fn).__name__.lower() or "Generated" in str(
        depthwise_conv(x, weight, None).grad_fn
    )
    with using(False):
        assert "Conv" in type(depthwise_conv(x, weight, None).grad_fn).__name__


@needs_compiler
def test_gradients_do_not_depend_on_the_number_of_threads():
    x, weight = torch.randn(4, 40, 14, 14), torch.randn(40, 1, 7, 7, requires_grad=True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.autograd.grad(depthwise_conv(x, weight, None).square().sum(), weight)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.randn(4, 1, 3, 3, dtype=torch.float64)),
        (torch.randn(2, 4, 6, 6, dtype=torch.float16), torch.randn(4, 1, 3, 3, dtype=torch.float16)),
        (torch.randn(2, 4, 6, 6), torch.randn(4, 1, 13, 13)),
        (torch.randn(0, 4, 6, 6), torch.randn(4, 1, 3, 3)),
        (torch.randn(2, 4, 6, 6, device="meta"), torch.randn(4, 1, 3, 3, device="meta")),
    ],
    ids=["float64", "float16", "kernel 13", "no image", "meta"],
)
def test_what_the_compiled_operator_does_not_know_goes_to_the_reference(x, weight):
    found, wanted = depthwise_conv(x, weight, None), reference(x, weight, None)
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert found.is_meta or torch.equal(found, wanted)


def test_dtypes_that_do_not_go_together_are_refused_as_by_pytorch():
    with pytest.raises(RuntimeError):
        depthwise_conv(torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3, dtype=torch.bfloat16), None)


def test_the_reference_has_the_gradients_of_its_function():
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(depthwise_conv, (x, weight, bias))


def test_under_functorch_it_is_pytorchs():
    x, weight = torch.randn(3, 2, 4, 6, 6), torch.randn(4, 1, 3, 3)
    found = torch.func.vmap(lambda part: depthwise_conv(part, weight, None))(x)
    assert torch.allclose(found, torch.stack([reference(part, weight, None) for part in x]), atol=1e-5)


@needs_compiler
def test_through_torch_compile_and_opcheck():
    x, weight, bias = torch.randn(2, 6, 9, 8), torch.randn(6, 1, 5, 5, requires_grad=True), torch.randn(6)
    torch.library.opcheck(torch.ops.convnext.depthwise_conv.default, (x, weight, bias))
    compiled = torch.compile(depthwise_conv, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x, weight, bias).sum(), weight)[0]
    assert torch.allclose(found, torch.autograd.grad(depthwise_conv(x, weight, bias).sum(), weight)[0])


@needs_compiler
def test_autocast_computes_in_its_dtype():
    x, weight = torch.randn(2, 6, 9, 8), torch.randn(6, 1, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert dispatch.lowered(x) == torch.bfloat16
        assert depthwise_conv(x, weight, None).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert depthwise_conv(x, weight, None).dtype == torch.float16
