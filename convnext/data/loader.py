"""From labelled images to micro-batches, by worker processes that change nothing but the speed.

A loader gives the samples of an optimizer step as one or more micro-batches. A worker prepares a micro-batch, and at most
`PREFETCH` of them wait for each worker: that bounds the memory of what is in flight, whatever the batch size.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import TypeVar as DefaultTypeVar

from convnext.data.deep import DeepImage
from convnext.data.images import CorruptImageError
from convnext.data.randomness import seeded
from convnext.errors import ConvnextError, first_line
from convnext.text import counted, printable

# The signals by which a system asks a process to end; Windows has no SIGHUP.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
EVALUATION = -1  # the epoch of images that are not augmented
PREFETCH = 2  # micro-batches that wait for each worker, the one it is at work on included
_SHOWN = 5  # reasons in a message

Key = tuple[int, int]  # epoch, index in the source


class IndexedImages(Protocol):
    """Images by position."""

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image | DeepImage: ...
    def pixels(self, index: int) -> Tensor | DeepImage: ...
    def name(self, index: int) -> str: ...


LabelT = DefaultTypeVar("LabelT", default=Any)  # what is learned about an image: a class, objects, a mask
SourceT = DefaultTypeVar("SourceT", bound=IndexedImages, default=Any)
GivenT = TypeVar("GivenT", covariant=True)
BatchT = TypeVar("BatchT")
T = TypeVar("T")


class Labelled(Protocol[GivenT]):
    """Labels by position."""

    def label(self, index: int) -> GivenT: ...


@dataclass
class Sample(Generic[LabelT]):
    """One image of a batch."""

    image: Tensor  # float32 (3, H, W); empty, and no label, for an image that could not be read in evaluation
    label: LabelT
    index: int  # its position in the source
    corrupt: list[tuple[int, str]]  # positions that could not be read on the way to it, each with the reason

    @property
    def readable(self) -> bool:
        """Whether the image could be read."""
        return self.image.numel() > 0


class Samples(Dataset[Sample[LabelT]], Generic[SourceT, LabelT]):
    """A source through a transform, addressed by (epoch, index): the sample is a function of (seed, epoch, index) alone.

    An index of at least `len(self)` is a repeat of the sample at `index % len(self)`, augmented anew.

    For an image that can't be read, training takes the next one that can; evaluation skips it. Both report it. A task whose
    labels are transformed with their images overrides `prepare`.
    """

    def __init__(self, source: SourceT, transform: Callable[..., Any], seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def prepare(self, image: Any, index: int) -> tuple[Tensor, LabelT]:
        """Return the image at a position of the source and its label, as they go into a batch."""
        return self.transform(image), cast(Labelled[LabelT], self.source).label(index)

    def prepare_for_training(self, image: Any, index: int, corrupt: list[tuple[int, str]]) -> tuple[Tensor, LabelT]:
        """Return what `prepare` does, augmented. A task that combines images overrides it, and takes the others from `another`."""
        return self.prepare(image, index)

    def another(self, read: Callable[[int], T], corrupt: list[tuple[int, str]]) -> T:
        """Return what `read` gives for a random position, or else for the next one that it can read; the others go to `corrupt`."""
        return self._first(np.random.randint(len(self.source)), read, corrupt)

    def __getitem__(self, key: Key) -> Sample[LabelT]:
        epoch, index = key
        corrupt: list[tuple[int, str]] = []
        if epoch == EVALUATION:
            try:
                # Decoded and resized with Pillow, as the published accuracies were measured.
                return Sample(*self.prepare(self.source.read(index), index), index, corrupt)
            except CorruptImageError as error:
                return Sample(torch.empty(0), cast(LabelT, None), index, [(index, str(error))])

        def take(at: int) -> Sample[LabelT]:
            with seeded(self.seed, epoch, index):  # a dataset from outside may draw at random when it gives an item
                return Sample(*self.prepare_for_training(self.source.pixels(at), at, corrupt), at, corrupt)

        return self._first(index, take, corrupt)

    def _first(self, start: int, read: Callable[[int], T], corrupt: list[tuple[int, str]]) -> T:
        count = len(self.source)
        for index in range(start, start + count):
            try:
                return read(index % count)
            except CorruptImageError as error:
                corrupt.append((index % count, str(error)))
        raise ConvnextError(f"none of the {count} images could be read; the first: {corrupt[0][1]}")


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
        balance: the class of each sample, if an epoch shall draw every class equally often. An epoch still has `count` samples. The
            k-th repeat of sample i is called i + k * count, so that each repeat is augmented in its own way; see `Samples`.
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
        balance: Sequence[int] | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.members = None if balance is None else [np.flatnonzero(np.equal(balance, one)) for one in np.unique(balance)]  # by class
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
        order = generator.permutation(self.count) if self.members is None else self._balanced(self.members, generator)
        groups = self.groups[order % self.count]
        batches = [batch for group in np.unique(self.groups) for batch in self._full(order[groups == group])]
        if len(np.unique(self.groups)) > 1:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        for batch in batches[self.start :]:
            share = batch[self.first : self.first + self.share]
            for begin in range(0, self.share, self.micro_batch):
                yield [(self.epoch, int(index)) for index in share[begin : begin + self.micro_batch]]

    def _balanced(self, members: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        """Return `count` positions in random order, of each class equally many or one more; none is repeated before all of its class."""
        share, more = divmod(self.count, len(members))
        luckier = set(generator.permutation(len(members))[:more].tolist())
        drawn = []
        for number, positions in enumerate(members):
            repeats, rest = divmod(share + (number in luckier), len(positions))
            drawn += [positions + repeat * self.count for repeat in range(repeats)]
            drawn.append(generator.permutation(positions)[:rest] + repeats * self.count)
        return generator.permutation(np.concatenate(drawn))

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


OrderT = TypeVar("OrderT", EpochOrder, InOrder)


class Loader(Generic[BatchT, OrderT]):
    """Batches of samples in an order, prepared by worker processes.

    The workers live as long as the loader, and each uses one thread. At most `workers` x `PREFETCH` batches are in flight, in
    host memory, beside the one that was given last.

    Args:
        collate: makes a batch of samples.
        workers: processes; with 0 this one prepares each batch when it is asked for.
        pin: put batches into page-locked memory, by their `pin_memory`.
    """

    def __init__(self, samples: Samples, order: OrderT, collate: Callable[[list[Sample]], BatchT], workers: int, pin: bool) -> None:
        self.samples = samples
        self.order: OrderT = order
        self._loader = DataLoader(
            samples,
            batch_sampler=order,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            collate_fn=collate,
            persistent_workers=workers > 0,
            pin_memory=pin,
            worker_init_fn=_leave_signals_to_the_parent,
        )

    def __iter__(self) -> Iterator[BatchT]:
        """Yield the batches. An error in a worker is raised as it would be without one: one line, without its traceback.

        Raises LostWorkerError, while a batch is asked for and at no other time, if a worker died.
        """
        try:
            # PyTorch's type says what it loads, not what `collate` makes of it.
            yield from _without_signal_handler(cast("Iterable[BatchT]", self._loader))
        except ConvnextError as error:
            name = f"{type(error).__module__}.{type(error).__qualname__}: "
            raise type(error)(str(error).rpartition(name)[2].strip()) from error
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A worker that dies while it hands over a batch leaves a broken connection. What a worker raised begins with "Caught".
            is_lost = "DataLoader worker" in str(error) if isinstance(error, RuntimeError) else self._loader.num_workers > 0
            if not is_lost or str(error).startswith("Caught "):
                raise
            raise LostWorkerError(
                f"a process that decodes images died, probably because memory ran out ({first_line(error)}): lower data.workers or "
                "train.device_batch_size, and resume with the same command and --resume"
            ) from error


def make_loader(
    samples: Samples, order: OrderT, collate: Callable[[list[Sample]], BatchT], workers: int, pin: bool
) -> Loader[BatchT, OrderT]:
    """Return a loader over that order; see `Loader`."""
    return Loader(samples, order, collate, workers, pin)


def _without_signal_handler(loader: Iterable[BatchT]) -> Iterator[BatchT]:
    # PyTorch's handler of SIGCHLD raises wherever this process is, in the middle of an optimizer's step too, whose state is then
    # half updated. Without it a dead worker is found where a batch is waited for, at the latest after five seconds.
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    batches = iter(loader)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return batches


def _leave_signals_to_the_parent(_: int) -> None:
    # Ctrl-C and SIGHUP reach every process of a terminal, Slurm's SIGTERM every process of a job. The parent ends its step and saves;
    # a worker that dies before would stop it. After half a minute the worker obeys, so that it cannot block the end of the job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: _end_later())


def _end_later() -> None:
    timer = threading.Timer(30, os._exit, (1,))
    timer.daemon = True  # a worker that has ended before does not wait for it
    timer.start()


class LostWorkerError(ConvnextError):
    """A process that decoded died."""


class CorruptImages:
    """The unreadable images met so far. Stops the run as soon as they are more than `limit` (a fraction) of `count`."""

    def __init__(self, count: int, limit: float, limit_key: str = "data.max_corrupt") -> None:
        self.count, self.limit, self.limit_key = count, limit, limit_key
        self.reasons: dict[int, str] = {}

    def add(self, found: Sequence[tuple[int, str]]) -> list[str]:
        """Note the unreadable images of a batch; return the reasons that are new. Raises ConvnextError beyond the limit."""
        reported = {index: printable(reason) for index, reason in found}
        fresh = [reason for index, reason in reported.items() if index not in self.reasons]
        self.reasons |= reported
        if len(self.reasons) > self.limit * self.count:
            some = "; ".join(list(self.reasons.values())[:_SHOWN])
            raise ConvnextError(
                f"{len(self.reasons)} of {counted(self.count, 'image')} can't be read, more than {self.limit:.1%} "
                f"({self.limit_key}): {some}{' …' if len(self.reasons) > _SHOWN else ''}"
            )
        return fresh
