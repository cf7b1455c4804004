"""Randomness as a function of where one is, so that neither workers nor restarts change a run."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(*place: int) -> None:
    """Seed Python, NumPy and PyTorch (CPU and devices) with a place such as (seed, step).

    Different places give independent streams.
    """
    torch.manual_seed(_seed_python_and_numpy(place))


def seed_numpy(*place: int) -> None:
    """Seed NumPy alone with a place."""
    np.random.seed(np.random.SeedSequence(place).generate_state(4))


_WITHIN = np.random.MT19937()  # swapped in by `seeded`: saving and restoring NumPy's state takes fifty times as long


@contextmanager
def seeded(*place: int) -> Iterator[None]:
    """Within, the CPU generators of Python, NumPy and PyTorch are those of `place`; after it, those of before. Not to be nested."""
    before = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()  # type: ignore[attr-defined]
    np.random.set_bit_generator(_WITHIN)  # type: ignore[attr-defined]
    torch.default_generator.manual_seed(_seed_python_and_numpy(place))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_bit_generator(before[1])  # type: ignore[attr-defined]
        torch.set_rng_state(before[2])


def _seed_python_and_numpy(place: tuple[int, ...]) -> int:
    """Returns the seed that is PyTorch's at that place."""
    words = np.random.SeedSequence(place).generate_state(4)
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])
    return int(words[2]) << 32 | int(words[3])
