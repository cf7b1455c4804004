import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.triton_tools import INTERPRETED, assert_rounded, compiling, gpu, interpreted, outside, run_under_interpreter

from convnext.errors import UsageError
from convnext.ops.triton import mlp

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
MULTIPLIED = (
    [torch.float32, torch.float16] if INTERPRETED else FLOATS
)  # the interpreter's product of bfloat16 multiplies their bit patterns


@pytest.fixture
def product_settings():
    """Restore torch's setting after a test that changes it."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def block(images, positions, width, dtype, device="cpu"):
    """Map, weights and biases of the two layers, layer scale, and stochastic depth, in float32 but for the map."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(4 * width, width), (4 * width,), (width, 4 * width), (width,), (width,)]
    w1, b1, w2, b2, gamma = (torch.randn(size, generator=generator).to(device) for size in sizes)
    y = torch.randn(images * positions, width, generator=generator).to(device, dtype)
    keep = torch.bernoulli(torch.full((images,), 0.7), generator=generator).to(device) / 0.7
    return y, w1 / width**0.5, b1, w2 / width**0.5, b2, gamma, keep


def check(images, positions, width, dtype, shortcut_dtype, scaled, dropped, device="cpu"):
    y, w1, b1, w2, b2, gamma, keep = block(images, positions, width, dtype, device)
    sums = 2e-6 if device == "cpu" else 1e-5  # tensor cores cut what they add, where float32 as such rounds
    z_wanted = F.linear(y.double(), w1.to(dtype).double(), b1.double())
    hidden, z = mlp.gelu_linear(y, w1, b1, save=True)
    assert hidden.dtype == z.dtype == dtype
    assert_rounded(z, z_wanted, sums)
    assert_rounded(hidden, F.gelu(z_wanted), sums)
    again, none = mlp.gelu_linear(y, w1, b1, save=False)
    assert none is None
    assert torch.equal(again, hidden)

    shortcut = torch.randn(len(y), width).to(device, shortcut_dtype)
    branch = F.linear(hidden.double(), w2.to(dtype).double(), b2.double())
    wanted = branch * gamma.double() if scaled else branch
    wanted = wanted * keep.double().repeat_interleave(positions)[:, None] if dropped else wanted
    arguments = gamma if scaled else None, keep if dropped else None
    out = mlp.linear_residual(hidden, w2, b2, *arguments, shortcut, positions)
    assert out.dtype == shortcut_dtype
    assert_rounded(out, shortcut.double() + wanted, sums)


def check_gelu_backward(shape, dtype, device="cpu"):
    z, dhidden = (4 * torch.randn(shape, device=device).to(dtype) for _ in range(2))
    leaf = z.double().requires_grad_()
    wanted = F.gelu(leaf)
    wanted.backward(dhidden.double())
    hidden, dz = mlp.gelu_backward(dhidden, z)
    assert hidden.dtype == dz.dtype == dtype
    assert_rounded(hidden, wanted)
    assert_rounded(dz, leaf.grad)


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_interpreter(__file__)


@interpreted
def test_a_small_case():
    check(2, 9, 8, torch.float32, torch.float32, scaled=True, dropped=True)
    check_gelu_backward((5, 7), torch.float32)


@interpreted
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    images=st.integers(0, 4),
    positions=st.integers(1, 60),
    width=st.integers(1, 70),
    dtype=st.sampled_from(MULTIPLIED),
    wide=st.booleans(),
    scaled=st.booleans(),
    dropped=st.booleans(),
)
def test_equals_torch(images, positions, width, dtype, wide, scaled, dropped):
    check(images, positions, width, dtype, torch.float32 if wide else dtype, scaled, dropped)


def check_tiles(monkeypatch, images, positions, width, dtype, device="cpu"):
    """Check the results of the layers in each of the tiles that are tried."""
    for tile in mlp._TILES:
        for kernel in (mlp._gelu_linear, mlp._linear_residual):
            monkeypatch.setattr(kernel, "configs", [tile])  # which is then used without tuning
        check(images, positions, width, dtype, torch.float32, scaled=True, dropped=True, device=device)


@interpreted
def test_every_tile(monkeypatch):
    check_tiles(monkeypatch, 2, 67, 36, torch.float16)


@interpreted
def test_more_tiles_than_go_into_a_group():
    check(3, 230, 33, torch.float32, torch.float32, scaled=True, dropped=True)  # 11 rows of tiles, in groups of 8


@interpreted
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(0, 3), (5, 7), (3, 2048)])
def test_gradient_of_gelu(shape, dtype):
    check_gelu_backward(shape, dtype)


def test_other_types_are_refused():
    with pytest.raises(UsageError, match="float64"):
        mlp.gelu_linear(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(12, 3), torch.zeros(12), save=False)


@pytest.mark.slow
@outside
@pytest.mark.parametrize(
    ("dtype", "tf32", "capability"),
    [(torch.bfloat16, False, 90), (torch.float32, True, 90), (torch.bfloat16, False, 80)],
)
@pytest.mark.usefixtures("product_settings")
def test_compiles_without_spilling(dtype, tf32, capability):
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    y, w1, b1, w2, b2, gamma, keep = block(2, 64, 96, dtype)
    with compiling(capability) as used:
        hidden, z = mlp.gelu_linear(y, w1, b1, save=True)
        mlp.linear_residual(hidden, w2, b2, gamma, keep, torch.zeros(128, 96), 64)
        mlp.gelu_backward(hidden, z)
    assert len(used) == 2 * len(mlp._TILES) + 1
    assert [use for use in used if use["stack"]] == []
    assert max(use["shared"] for use in used) <= 227 * 1024  # bytes that a program can have on an H100


@outside
def test_full_float32_compiles_in_one_tile():
    y, w1, b1, *_ = block(1, 64, 96, torch.float32)
    with compiling() as used:
        mlp.gelu_linear(y, w1, b1, save=False)
    assert [(use["PRECISION"], use["BLOCK_M"]) for use in used] == [("ieee", 64)]


@gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(16, 56 * 56, 96), (8, 28 * 28, 192), (8, 14 * 14, 384), (8, 7 * 7, 768), (3, 13, 40)])
def test_equals_torch_on_a_gpu(shape, dtype):
    check(*shape, dtype, torch.float32, scaled=True, dropped=True, device="cuda")
    check(*shape, dtype, dtype, scaled=False, dropped=False, device="cuda")


@gpu
def test_every_tile_on_a_gpu(monkeypatch):
    check_tiles(monkeypatch, 3, 28 * 28 + 1, 96, torch.bfloat16, "cuda")


@gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_of_gelu_on_a_gpu(dtype):
    check_gelu_backward((16 * 56 * 56, 384), dtype, "cuda")
