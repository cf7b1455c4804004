"""The order of samples in training and in evaluation, by epoch and index."""

from collections.abc import Iterator, Sequence

import numpy as np

from convnext.data.sampling.draws import Draw

EVALUATION = -1  # the epoch of images that are not augmented

Key = tuple[int, int]  # epoch, index in the source


class EpochOrder:
    """Micro-batches of (epoch, index), the part of every batch that this process takes, in a fresh order every epoch.

    The order is a function of (seed, epoch) alone. Set `epoch` and `start`, the first batch to give, before iterating: that is
    how a run resumes in the middle of an epoch. A last batch that would not be full is dropped, as published.

    Args:
        count: samples in the source.
        batch_size: samples in a batch, all processes together; a multiple of `world`.
        seed: of the order.
        rank: which of `world` equal parts of each batch to give.
        groups: of each sample, where a batch shall hold samples of one group only (portrait or landscape images, so that little
            of the padding is empty). Samples that do not fill a batch of their group are dropped.
        draw: which samples an epoch consists of, if not of each once; see `draws`. An epoch still has as many batches.
        micro_batch: samples in a micro-batch, the last of a part may have fewer; by default the whole part.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        groups: Sequence[int] | None = None,
        micro_batch: int | None = None,
        draw: Draw | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.draw = draw
        self.groups = np.zeros(count, dtype=int) if groups is None else np.asarray(groups)
        self.share = batch_size // world
        self.micro_batch = min(micro_batch or self.share, self.share)
        self.first = rank * self.share
        self.batches = int(sum(np.unique(self.groups, return_counts=True)[1] // batch_size))  # in an epoch
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return (self.batches - self.start) * -(-self.share // self.micro_batch)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        kinds = np.unique(self.groups)
        # Of each group a batch may be lost to what does not fill one, so that many groups need more samples for as many batches.
        wanted = self.count + (len(kinds) - 1) * self.batch_size
        order = generator.permutation(self.count) if self.draw is None else self.draw(wanted, generator)
        groups = self.groups[order % self.count]
        batches = [batch for group in kinds for batch in self._full(order[groups == group])]
        if len(kinds) > 1:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        for batch in batches[self.start : self.batches]:
            share = batch[self.first : self.first + self.share]
            for begin in range(0, self.share, self.micro_batch):
                yield [(self.epoch, int(index)) for index in share[begin : begin + self.micro_batch]]

    def _full(self, order: np.ndarray) -> list[np.ndarray]:
        return [order[i : i + self.batch_size] for i in range(0, len(order) - self.batch_size + 1, self.batch_size)]


class InOrder:
    """Batches of (EVALUATION, index) that this process takes: every `world`-th sample from the `rank`-th on, each sample once in all."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.indices, self.batch_size = range(rank, count, world), batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(EVALUATION, index) for index in self.indices[start : start + self.batch_size]]
