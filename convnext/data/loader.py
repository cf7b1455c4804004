"""From labelled images to micro-batches, by worker processes that change nothing but the speed.

A loader gives the samples of an optimizer step as one or more micro-batches. A worker prepares a micro-batch, and at most
`PREFETCH` of them wait for each worker: that bounds the memory of what is in flight, whatever the batch size.
"""

import gc
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
from convnext.data.sampling.order import EVALUATION, EpochOrder, InOrder, Key
from convnext.errors import ConvnextError, first_line
from convnext.text import counted, printable

# The signals by which a system asks a process to end; Windows has no SIGHUP.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
PREFETCH = 2  # micro-batches that wait for each worker, the one it is at work on included
_SHOWN = 5  # reasons in a message


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

    def prepare_for_training(self, image: Any, index: int, epoch: int, corrupt: list[tuple[int, str]]) -> tuple[Tensor, LabelT]:
        """Return what `prepare` does, augmented. What is read besides, and can't be, goes to `corrupt`."""
        return self.prepare(image, index)

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
                return Sample(*self.prepare_for_training(self.source.pixels(at), at, epoch, corrupt), at, corrupt)

        return self.first(index, take, corrupt)

    def first(self, start: int, read: Callable[[int], T], corrupt: list[tuple[int, str]]) -> T:
        """Return what `read` gives for a position, or else for the next one that it can read; those that it can't go to `corrupt`."""
        count = len(self.source)
        for index in range(start, start + count):
            try:
                return read(index % count)
            except CorruptImageError as error:
                corrupt.append((index % count, str(error)))
        raise ConvnextError(f"none of the {count} images could be read; the first: {corrupt[0][1]}")


class CombinedSamples(Samples[SourceT, LabelT]):
    """Samples of which one may be made of several images, by a transform that takes a function to read others.

    Args:
        plain_from: the epoch from which on each is made of its image alone, if any.
    """

    def __init__(self, source: SourceT, transform: Callable[..., Any], seed: int, plain_from: int | None = None) -> None:
        super().__init__(source, transform, seed)
        self.plain_from = plain_from

    def labelled(self, index: int) -> tuple[Any, Any]:
        """Return the image at a position and what is known of it, as the transform takes them."""
        raise NotImplementedError

    def others(self, epoch: int, corrupt: list[tuple[int, str]]) -> Callable[[], tuple[Any, Any]] | None:
        """Return the function that reads a random image of the source, or the next one that can be read; None where there is none."""
        if self.plain_from is not None and epoch >= self.plain_from:
            return None
        return lambda: self.first(np.random.randint(len(self.source)), self.labelled, corrupt)


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
            worker_init_fn=_prepare_worker,
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


def _prepare_worker(_: int) -> None:
    # What a forked worker inherits is never freed here: a decoder or a runtime would wait for threads that the fork does not have.
    gc.freeze()
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
                f"({self.limit_key}): {some}{' …' if len(self.reasons) > _SHOWN else ''}; "
                f"`convnext data check` lists all: repair or remove them, or raise {self.limit_key}"
            )
        return fresh
