"""From labelled images to batches, by worker processes that change nothing but the speed."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from convnext.data.images import CorruptImageError
from convnext.data.randomness import seeded
from convnext.errors import ConvnextError, first_line
from convnext.text import printable

# Those by which a system asks a process to end; Windows has no SIGHUP.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
EVALUATION = -1  # the epoch of images that are not augmented


@dataclass
class Sample:
    """One image of a batch, or, in evaluation, the place of one that could not be read."""

    image: Any  # None where it could not be read
    label: Any  # what there is to learn about it
    index: int  # its position in the source
    corrupt: list[tuple[int, str]]  # positions that could not be read on the way to it, each with the reason


class Samples(Dataset[Sample]):
    """A source through a transform, addressed by (epoch, index): the sample is a function of (seed, epoch, index) alone.

    Where an image can't be read, training takes the next one that can, evaluation leaves it out; both say so. A task whose
    labels are transformed with their images overrides `prepare`.
    """

    def __init__(self, source: Any, transform: Callable[..., Any], seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def prepare(self, image: Any, index: int) -> tuple[Any, Any]:
        """Image and label of the image at a position of the source, as they go into a batch."""
        return self.transform(image), self.source.label(index)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        corrupt: list[tuple[int, str]] = []
        for i in range(index, index + len(self.source)):
            at = i % len(self.source)
            try:
                if epoch == EVALUATION:
                    # Decoded and resized with Pillow, as the published accuracies were measured.
                    return Sample(*self.prepare(self.source.read(at), at), at, corrupt)
                image = self.source.pixels(at)
                with seeded(self.seed, epoch, index):
                    return Sample(*self.prepare(image, at), at, corrupt)
            except CorruptImageError as error:
                corrupt.append((at, str(error)))
                if epoch == EVALUATION:
                    return Sample(None, None, index, corrupt)
        raise ConvnextError(f"not one of {len(self.source)} images could be read; the first: {corrupt[0][1]}")


class EpochOrder:
    """Our process's part of every batch of (epoch, index), in a fresh order every epoch, a function of (seed, epoch) alone.

    Set `epoch` and `start`, the first batch to give, before iterating: that is how a run goes on in the middle of an epoch.
    The last batch is dropped where it would not be full, as published.

    Args:
        count: samples in the source.
        batch_size: samples in a batch, all processes together; a multiple of `world`.
        seed: of the order.
        rank: which of `world` equal parts of each batch to give.
        groups: of each sample, where a batch shall hold samples of one group only (images upright or across, so that little of
            the padding is empty). What does not fill a batch of its group is dropped.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, groups: Sequence[int] | None = None) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.groups = np.zeros(count, dtype=int) if groups is None else np.asarray(groups)
        self.share = batch_size // world
        self.first = rank * self.share
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return int(sum(np.unique(self.groups, return_counts=True)[1] // self.batch_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        order = generator.permutation(self.count)
        batches = [batch for group in np.unique(self.groups) for batch in self._full(order[self.groups[order] == group])]
        if len(np.unique(self.groups)) > 1:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        for batch in batches[self.start :]:
            yield [(self.epoch, int(index)) for index in batch[self.first : self.first + self.share]]

    def _full(self, order: np.ndarray) -> list[np.ndarray]:
        return [order[i : i + self.batch_size] for i in range(0, len(order) - self.batch_size + 1, self.batch_size)]


class InOrder:
    """Our process's batches of (EVALUATION, index): every `world`-th sample from the `rank`-th on, each sample once in all."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.indices, self.batch_size = range(rank, count, world), batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(EVALUATION, index) for index in self.indices[start : start + self.batch_size]]


def make_loader(samples: Samples, order: EpochOrder | InOrder, collate: Callable[[list[Sample]], Any], workers: int, pin: bool) -> Any:
    """A DataLoader over that order. Workers live as long as the loader; each holds one thread, as there are many of them."""
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_parent,
    )


def _leave_signals_to_the_parent(_: int) -> None:
    # Ctrl-C and SIGHUP reach every process of a terminal, Slurm's SIGTERM every process of a job. The parent ends its step and saves;
    # a worker that dies before would stop it. After half a minute the worker obeys, so that nothing can hang on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: signal.alarm(30))


class LostWorkerError(ConvnextError):
    """A process that decoded died."""


def batches(loader: Any) -> Iterator[Any]:
    """The batches of a loader. What goes wrong in a worker is raised as it would be without one: one line, without its traceback."""
    try:
        yield from loader
    except ConvnextError as error:
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise type(error)(str(error).rpartition(name)[2].strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LostWorkerError(
            f"a process that decodes images died, mostly for want of memory ({first_line(error)}): lower data.workers or "
            "train.batch_size, and go on with the same command and --resume"
        ) from error


class CorruptImages:
    """The unreadable images met so far. Stops the run as soon as they are more than `limit` (a fraction) of `count`."""

    def __init__(self, count: int, limit: float, limit_key: str = "data.max_corrupt") -> None:
        self.count, self.limit, self.limit_key = count, limit, limit_key
        self.reasons: dict[int, str] = {}

    def add(self, found: list[tuple[int, str]]) -> list[str]:
        """Note what a batch met; returns the reasons not told before. Raises ConvnextError beyond the limit."""
        told = {index: printable(reason) for index, reason in found}
        fresh = [reason for index, reason in told.items() if index not in self.reasons]
        self.reasons |= told
        if len(self.reasons) > self.limit * self.count:
            some = "; ".join(list(self.reasons.values())[:5])
            raise ConvnextError(
                f"{len(self.reasons)} of {self.count} images can't be read, more than {self.limit:.1%} "
                f"({self.limit_key}): {some}{' …' if len(self.reasons) > 5 else ''}"
            )
        return fresh
