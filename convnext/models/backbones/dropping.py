"""Randomness that does not depend on how a batch is split: stochastic depth and dropout draw for the whole batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class _Split:
    whole: int | None = None
    indices: Tensor | None = None


# One for the process, and not a ContextVar or an attribute of a thread: a block that is recomputed in the backward pass runs in a thread
# of autograd's own, and must draw what the forward pass drew.
_SPLIT = _Split()


@contextmanager
def split_of(whole: int, indices: Tensor) -> Iterator[None]:
    """Let every `Dropper` draw for a batch of `whole` samples, of which those that it sees have these indices.

    Without this, a dropper draws for the batch that it sees. Enclose the forward and the backward pass, which recomputes blocks where
    gradients are checkpointed.

    Args:
        whole: samples of the batch on all devices, in all micro-batches.
        indices: (n,) int64, the positions in it of the samples that go through the network, on the network's device.
    """
    before = _SPLIT.whole, _SPLIT.indices
    _SPLIT.whole, _SPLIT.indices = whole, indices
    try:
        yield
    finally:
        _SPLIT.whole, _SPLIT.indices = before


class Dropper(nn.Module):
    """Base of the modules that drop parts of samples in training with probability `rate`, and scale the rest; see `split_of`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def factors(self, x: Tensor, *shape: int) -> Tensor:
        """Return what to multiply samples x (N, …) by, (N, *shape): 0, or the number that keeps the mean."""
        keep = 1.0 - self.rate
        kept = x.new_empty(_SPLIT.whole or x.shape[0], *shape).bernoulli_(keep)
        if _SPLIT.indices is not None:
            kept = kept[_SPLIT.indices]
        return kept / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class DropPath(Dropper):
    """Stochastic depth (Huang et al., 2016): drops a residual branch (N, …), sample by sample."""

    def forward(self, x: Tensor) -> Tensor:
        keep = self.keep(x)
        return x if keep is None else x * keep.view(-1, *(1,) * (x.ndim - 1))

    def keep(self, x: Tensor) -> Tensor | None:
        """Return what each sample's branch is multiplied by, (N,); None if nothing is dropped."""
        return None if self.rate == 0.0 or not self.training else self.factors(x)


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Return the rates of `depth` blocks: they rise linearly from 0 to that of the last."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]
