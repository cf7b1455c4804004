import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.triton_tools import assert_rounded, compiling, gpu, interpreted, outside, run_under_interpreter

from convnext.errors import UsageError
from convnext.ops.triton import norm

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def tensors(rows, channels, dtype, weight_dtype, device="cpu", offset=0.0):
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(rows, channels, generator=generator) for _ in range(2))
    weight, bias = (torch.randn(channels, generator=generator) for _ in range(2))
    return (x + offset).to(device, dtype), dy.to(device, dtype), weight.to(device, weight_dtype), bias.to(device, weight_dtype)


def check(x, dy, weight, bias, eps=1e-6):
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]
    wanted = F.layer_norm(inputs[0], (x.shape[1],), *inputs[1:], eps)
    wanted.backward(dy.double())
    y, mean, scale = norm.forward(x, weight, bias, eps)
    assert y.dtype == x.dtype
    assert mean.dtype == scale.dtype == torch.float32
    assert_rounded(y, wanted)
    assert_rounded(mean, x.double().mean(1))
    assert_rounded(scale, (x.double().var(1, unbiased=False) + eps).rsqrt())
    dx, dweight, dbias = norm.backward(x, dy, weight, mean, scale)
    assert dx.dtype == x.dtype
    assert dweight.dtype == dbias.dtype == torch.float32
    assert_rounded(dx, inputs[0].grad)
    assert_rounded(dweight, inputs[1].grad)
    assert_rounded(dbias, inputs[2].grad)


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_interpreter(__file__)


@interpreted
def test_a_small_case():
    check(*tensors(5, 7, torch.float32, torch.float32))


@interpreted
@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 70), channels=st.integers(3, 200), dtype=st.sampled_from(FLOATS), weight_dtype=st.sampled_from(FLOATS))
def test_equals_torch(rows, channels, dtype, weight_dtype):
    check(*tensors(rows, channels, dtype, weight_dtype))


@interpreted
@pytest.mark.parametrize("shape", [(3, 4096), (5, 768), (1, 3)])
def test_wide_and_narrow_rows(shape):
    check(*tensors(*shape, torch.float32, torch.float32), eps=1e-3)


@interpreted
def test_no_rows():
    x, dy, weight, bias = tensors(0, 3, torch.float32, torch.float32)
    y, mean, scale = norm.forward(x, weight, bias, 1e-6)
    assert (y.shape, mean.shape, scale.shape) == ((0, 3), (0,), (0,))
    dx, dweight, dbias = norm.backward(x, dy, weight, mean, scale)
    assert dx.shape == (0, 3)
    assert torch.equal(dweight, torch.zeros(3))
    assert torch.equal(dbias, torch.zeros(3))


@interpreted
def test_variance_of_rows_far_from_zero():
    """Where the mean of squares minus the square of the mean has no correct digit."""
    x, _, weight, bias = tensors(4, 96, torch.float32, torch.float32, offset=4096.0)
    wanted = F.layer_norm(x.double(), (96,), weight.double(), bias.double(), 1e-6)
    assert (norm.forward(x, weight, bias, 1e-6)[0] - wanted).abs().max() < 1e-3


@interpreted
def test_sums_over_many_rows_are_the_same_each_time(monkeypatch):
    monkeypatch.setattr(norm, "_PROGRAMS", 3)  # so that a program goes over several blocks of rows, the last over fewer
    x, dy, weight, bias = tensors(150, 100, torch.float32, torch.float32)
    check(x, dy, weight, bias)
    _, mean, scale = norm.forward(x, weight, bias, 1e-6)
    first, second = (norm.backward(x, dy, weight, mean, scale) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_other_types_and_wider_rows_are_refused():
    ones = torch.ones(5000)
    with pytest.raises(UsageError, match="float64"):
        norm.forward(torch.zeros(2, 3, dtype=torch.float64), ones[:3], ones[:3], 1e-6)
    with pytest.raises(UsageError, match="not 5000"):
        norm.forward(torch.zeros(2, 5000), ones, ones, 1e-6)


@outside
@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(96, torch.bfloat16), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(768, torch.bfloat16), (4096, torch.float32)])],
)
def test_compiles_without_spilling(channels, dtype):
    x, dy, weight, bias = tensors(32, channels, dtype, torch.float32)
    with compiling() as used:
        _, mean, scale = norm.forward(x, weight, bias, 1e-6)
        norm.backward(x, dy, weight, mean, scale)
    assert [use["stack"] for use in used] == [0, 0]


@gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape", [(16 * 56 * 56, 96), (8 * 28 * 28, 192), (8 * 14 * 14, 384), (8 * 7 * 7, 768), (1001, 1536), (33, 4096), (7, 5)]
)
def test_equals_torch_on_a_gpu(shape, dtype):
    check(*tensors(*shape, dtype, torch.float32, "cuda"))


@gpu
def test_gradients_on_a_gpu_are_the_same_each_time():
    x, dy, weight, bias = tensors(16 * 56 * 56, 96, torch.bfloat16, torch.float32, "cuda")
    _, mean, scale = norm.forward(x, weight, bias, 1e-6)
    first, *others = (norm.backward(x, dy, weight, mean, scale) for _ in range(5))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
