import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.triton_tools import assert_rounded, compiling, gpu, interpreted, outside, run_under_interpreter

from convnext.errors import UsageError
from convnext.ops.triton import depthwise

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(16, 96, 56, 56), (8, 192, 28, 28), (8, 384, 14, 14), (8, 768, 7, 7), (1, 96, 200, 304), (3, 5, 1, 13), (2, 40, 71, 33)]


def tensors(images, channels, height, width, kernel, dtype, weight_dtype, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(images, channels, height, width, generator=generator) for _ in range(2))
    weight, bias = torch.randn(channels, 1, kernel, kernel, generator=generator), torch.randn(channels, generator=generator)
    x, dy = (t.to(device, dtype).to(memory_format=torch.channels_last) for t in (x, dy))
    return x, dy, weight.to(device, weight_dtype), bias.to(device, weight_dtype)


def check(x, dy, weight, bias):
    kernel = weight.shape[-1]
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]
    wanted = F.conv2d(*inputs, padding=kernel // 2, groups=len(weight))
    wanted.backward(dy.double())
    found = depthwise.forward(x, weight, bias)
    assert found.dtype == x.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_rounded(found, wanted)
    dx = depthwise.input_gradient(dy, weight)
    assert dx.dtype == x.dtype
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert_rounded(dx, inputs[0].grad)
    dweight, dbias = depthwise.weight_gradient(x, dy, kernel)
    assert dweight.dtype == dbias.dtype == torch.float32
    assert_rounded(dweight, inputs[1].grad)
    assert_rounded(dbias, inputs[2].grad)


def check_tiles(monkeypatch, x, _, weight, bias):
    found = []
    for tile in depthwise._TILES:
        monkeypatch.setattr(depthwise._convolve, "configs", [tile])  # which is then used without tuning
        found.append(depthwise.forward(x, weight, bias))
    assert_rounded(found[0], F.conv2d(x.double(), weight.double(), bias.double(), padding=weight.shape[-1] // 2, groups=len(weight)))
    assert all(torch.equal(result, found[0]) for result in found[1:])


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_interpreter(__file__)


@interpreted
def test_a_small_case():
    check(*tensors(1, 3, 4, 5, 3, torch.float32, torch.float32))


@interpreted
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    images=st.integers(1, 2),
    channels=st.integers(1, 34),
    height=st.integers(1, 8),
    width=st.integers(1, 10),
    kernel=st.sampled_from([3, 5, 7, 9, 11]),
    dtype=st.sampled_from(FLOATS),
    weight_dtype=st.sampled_from(FLOATS),
)
def test_equals_torch(images, channels, height, width, kernel, dtype, weight_dtype):
    check(*tensors(images, channels, height, width, kernel, dtype, weight_dtype))


@interpreted
@pytest.mark.parametrize("shape", [(2, 5, 1, 13), (1, 1, 70, 2), (3, 33, 7, 7), (0, 3, 4, 4), (1, 2, 1, 1)])  # 70: two strips of rows
def test_sizes_at_the_borders(shape):
    check(*tensors(*shape, 3, torch.float32, torch.float32))


@interpreted
def test_maps_in_another_layout_and_no_bias():
    x, dy, weight, _ = tensors(2, 6, 5, 8, 5, torch.float32, torch.float32)
    crossed = x.contiguous().transpose(2, 3).contiguous().transpose(2, 3)
    wanted = F.conv2d(x.double(), weight.double(), padding=2, groups=6)
    assert_rounded(depthwise.forward(crossed, weight, None), wanted)
    assert torch.equal(depthwise.weight_gradient(crossed, dy.contiguous(), 5)[0], depthwise.weight_gradient(x, dy, 5)[0])


@interpreted
def test_sums_over_many_images_are_the_same_each_time(monkeypatch):
    monkeypatch.setattr(depthwise, "_PROGRAMS", 3)  # so that a program goes over several images, the last over fewer
    x, dy, weight, bias = tensors(7, 3, 4, 5, 3, torch.float32, torch.float32)
    check(x, dy, weight, bias)
    first, second = (depthwise.weight_gradient(x, dy, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@interpreted
def test_every_tile_gives_the_same_bits(monkeypatch):
    check_tiles(monkeypatch, *tensors(1, 37, 9, 10, 3, torch.float16, torch.float32))


def test_other_types_and_even_kernels_are_refused():
    with pytest.raises(UsageError, match="float64"):
        depthwise.forward(torch.zeros(1, 1, 3, 3, dtype=torch.float64), torch.zeros(1, 1, 3, 3), None)
    with pytest.raises(UsageError, match="not 4"):
        depthwise.weight_gradient(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3), 4)


@pytest.mark.slow
@outside
@pytest.mark.parametrize(
    ("dtype", "kernel", "capability"),
    [(torch.bfloat16, 7, 90), (torch.float16, 3, 80), (torch.float32, 11, 90)],
)
def test_compiles_without_spilling(dtype, kernel, capability):
    x, dy, weight, bias = tensors(2, 96, 14, 14, kernel, dtype, torch.float32)
    with compiling(capability) as used:
        depthwise.forward(x, weight, bias)
        depthwise.input_gradient(dy, weight.to(dtype))
        depthwise.weight_gradient(x, dy, kernel)
    assert len(used) == 2 * len(depthwise._TILES) + 1
    assert [use for use in used if use["stack"]] == []


@gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "kernel"), [(torch.float32, 7), (torch.bfloat16, 7), (torch.float16, 7), (torch.bfloat16, 3), (torch.float32, 11)]
)
def test_equals_torch_on_a_gpu(shape, dtype, kernel):
    check(*tensors(*shape, kernel, dtype, torch.float32, "cuda"))


@gpu
def test_every_tile_gives_the_same_bits_on_a_gpu(monkeypatch):
    check_tiles(monkeypatch, *tensors(2, 96, 55, 61, 7, torch.bfloat16, torch.float32, "cuda"))


@gpu
def test_a_kernel_of_31_on_a_gpu():
    check(*tensors(2, 40, 30, 33, 31, torch.float32, torch.float32, "cuda"))


@gpu
def test_gradients_on_a_gpu_are_the_same_each_time():
    x, dy, *_ = tensors(16, 96, 56, 56, 7, torch.bfloat16, torch.float32, "cuda")
    first, *others = (depthwise.weight_gradient(x, dy, 7) for _ in range(5))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@gpu
def test_more_elements_than_32_bits_count():
    x, _, weight, bias = tensors(1, 96, 56, 56, 7, torch.bfloat16, torch.float32, "cuda")
    many = x.expand(7200, -1, -1, -1).contiguous(memory_format=torch.channels_last)  # 2.17e9 elements, 4.3 GB
    assert torch.equal(depthwise.forward(many, weight, bias)[-1], depthwise.forward(x, weight, bias)[0])
