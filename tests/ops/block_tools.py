"""What the tests of the block share: random parameters, errors, and the bounds of these."""

import pytest
import torch

from convnext.ops import Parameters, build

needs_compiler = pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")
needs_tiles = pytest.mark.skipif(not build.has_tiles(), reason="this CPU has no AMX")
# Relative to the largest value. bf16's gradients are sums of rounded products over the whole map.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def use_level(level, monkeypatch):
    """Let operators call the library of a level, one of build.levels(), until the test ends. Weights packed before are of another."""
    monkeypatch.setattr(build, "library", lambda: build.library_of(level))


def relative(found, wanted):
    return ((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)).item()


def parameters(channels, kernel, seed, *, scaled=True, hidden=None):
    generator = torch.Generator().manual_seed(seed)
    hidden = hidden or 4 * channels

    def drawn(*shape, scale=1.0, shift=0.0):
        return (torch.randn(shape, generator=generator) * scale + shift).requires_grad_()

    return Parameters(
        drawn(channels, 1, kernel, kernel, scale=1 / kernel),
        drawn(channels, scale=0.1),
        drawn(channels, scale=0.3, shift=1.0),
        drawn(channels, scale=0.1),
        drawn(hidden, channels, scale=channels**-0.5),
        drawn(hidden, scale=0.1),
        drawn(channels, hidden, scale=hidden**-0.5),
        drawn(channels, scale=0.1),
        drawn(channels, scale=0.3, shift=1.0) if scaled else None,
    )


def wide(tensors):
    return [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]
