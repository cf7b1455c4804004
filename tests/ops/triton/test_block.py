"""The block of Triton kernels against plain PyTorch in float64, under the interpreter; through the operators on a GPU."""

import pytest
import torch
from ops.triton_tools import gpu, interpreted, outside, run_under_interpreter

from convnext.ops import Parameters, block, dispatch
from convnext.ops.block import reference
from convnext.ops.operands import NormMlp
from convnext.ops.triton import block as triton_block

SHAPE, KERNEL, EPS = (2, 24, 5, 7), 7, 1e-6


def drawn(scaled, dtype):
    channels, generator = SHAPE[1], torch.Generator().manual_seed(0)

    def draw(*shape, scale=0.1, shift=0.0):
        return torch.randn(shape, generator=generator) * scale + shift

    linear = draw(4 * channels, channels, scale=0.2), draw(4 * channels), draw(channels, 4 * channels), draw(channels)
    gamma = draw(channels, scale=0.3, shift=1) if scaled else None
    held = Parameters(draw(channels, 1, KERNEL, KERNEL), draw(channels), draw(channels, shift=1), draw(channels), *linear, gamma)
    return draw(*SHAPE, scale=1).to(dtype), held, draw(*SHAPE, scale=1).to(dtype)


def wanted_of(x, held, towards, keep):
    wide = [None if part is None else part.double().requires_grad_() for part in (x, *held)]
    y = reference(wide[0], Parameters(*wide[1:]), EPS, None if keep is None else keep.double())
    inputs = [part for part in wide if part is not None]
    return y, torch.autograd.grad(y, inputs, towards.double())


def check(found, wanted, bound):
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one.shape == other.shape, i
        assert ((one.double() - other).abs().max() / other.abs().max()).item() < bound, i


@interpreted
def test_a_small_case():
    test_result_and_gradients(torch.float32, 1e-5, True, True)


@interpreted
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize(("scaled", "dropped"), [(True, True), (False, False)])
def test_result_and_gradients(dtype, bound, scaled, dropped):
    x, held, towards = drawn(scaled, dtype)
    keep = torch.tensor([0.0, 1.25]) if dropped else None
    out, convolved, means, scales = triton_block.forward(x, held, keep, eps=EPS, dtype=dtype)
    *of_convolution, others = triton_block.backward(towards, x, convolved, held.dwconv_weight, NormMlp(means, scales, *held[2:]), keep)
    y, wanted = wanted_of(x, held, towards, keep)
    check([out, *of_convolution, *others[1:][: len(wanted) - 3]], [y, *wanted], bound)


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_interpreter(__file__)


@gpu
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
def test_on_a_gpu_through_the_operator(dtype, bound, monkeypatch):
    monkeypatch.setattr(dispatch, "_SETTING", "triton")
    x, held, towards = (
        part.cuda() if isinstance(part, torch.Tensor) else Parameters(*(p.cuda() for p in part)) for part in drawn(True, torch.float32)
    )
    inputs = [part.requires_grad_() for part in (x, *held)]
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        out = block(inputs[0], Parameters(*inputs[1:]), EPS, None)
    y, wanted = wanted_of(x.detach(), [part.detach() for part in held], towards, None)
    check([out, *torch.autograd.grad(out, inputs, towards)], [y, *wanted], bound)
