"""Randomness as a function of a position such as (seed, step), so that neither workers nor restarts change a run."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(*position: int) -> None:
    """Seed Python, NumPy and PyTorch (CPU and devices) with a position such as (seed, step).

    Different positions give independent streams.
    """
    torch.manual_seed(_seed_python_and_numpy(position))


def seed_numpy(*position: int) -> None:
    """Seed NumPy alone with a position."""
    np.random.seed(np.random.SeedSequence(position).generate_state(4))


@contextmanager
def generators_kept() -> Iterator[None]:
    """On leaving, restore the global generators of Python, NumPy and PyTorch (CPU, CUDA, MPS), after an error too."""
    python, numpy, cpu, seed = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.initial_seed()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        else:
            torch.cuda.manual_seed_all(seed)  # that of the caller's `torch.manual_seed`, which CUDA takes when it starts
        if mps is not None:
            torch.mps.set_rng_state(mps)


_WITHIN = np.random.MT19937()  # swapped in by `seeded`: saving and restoring NumPy's state takes fifty times as long


@contextmanager
def seeded(*position: int) -> Iterator[None]:
    """Within, seed the CPU generators of Python, NumPy and PyTorch with a position; on leaving, restore them. Does not nest."""
    before = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()  # type: ignore[attr-defined]
    np.random.set_bit_generator(_WITHIN)  # type: ignore[attr-defined]
    torch.default_generator.manual_seed(_seed_python_and_numpy(position))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_bit_generator(before[1])  # type: ignore[attr-defined]
        torch.set_rng_state(before[2])


def _seed_python_and_numpy(position: tuple[int, ...]) -> int:
    """Return the seed of PyTorch at a position."""
    words = np.random.SeedSequence(position).generate_state(4)
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])
    return int(words[2]) << 32 | int(words[3])
