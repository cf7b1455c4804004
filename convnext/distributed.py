"""Processes that train together: under torchrun each takes its share of every batch.

Without torchrun, everything here is the same for a group of one process, so there is only one code path.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from convnext.errors import ConvnextError, UsageError, first_line
from convnext.rendezvous import meet, open_store

T = TypeVar("T")

_CONNECT, _OPERATION = timedelta(minutes=1), timedelta(minutes=30)


@contextmanager
def process_group(device: str | None = None) -> Iterator[torch.device]:
    """Make the processes that torchrun started one group; yield the device of this process.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is. In a group, CUDA devices are assigned by local
            rank, and the current CUDA device stays the assigned one.

    A group that the caller has made is used as it is. Raises ConvnextError, naming who is missing, if the processes do not meet
    within ten minutes, and if the connection to another process breaks.
    """
    if world() == 1 and (dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1):
        yield pick_device(device)
    elif dist.is_initialized():
        yield _device_of_rank(device, os.environ.get("LOCAL_RANK"))
    else:
        if device not in (None, "cpu", "cuda"):
            raise UsageError(f"--device {device}: under torchrun give cpu or cuda; the number follows from the local rank")
        own = _device_of_rank(device, _environment("LOCAL_RANK"))
        _join("nccl" if own.type == "cuda" else "gloo")
        try:
            with _broken_connections():
                yield own
        finally:
            dist.destroy_process_group()


def _device_of_rank(device: str | None, local_rank: str | None) -> torch.device:
    """Return the device of this process; set the current CUDA device, which NCCL uses."""
    if device not in (None, "cuda") or (device is None and not torch.cuda.is_available()):
        return pick_device(device or "cpu")
    pick_device("cuda")
    count = torch.cuda.device_count()
    if local_rank is not None and int(local_rank) >= count:
        raise UsageError(f"no CUDA device for local rank {local_rank}: this machine has {count}; start at most {count} processes on it")
    # A caller who made the group without torchrun has chosen a device before, or runs one process per device.
    number = int(local_rank) if local_rank is not None else torch.cuda.current_device() or rank() % count
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def _broken_connections() -> Iterator[None]:
    """Turn an error of the connection between processes into one that says where to look."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise ConvnextError(
            f"rank {rank()} lost the connection to another process ({first_line(error)}): that one's message has the reason; "
            "the same command with --resume continues"
        ) from error


def _environment(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError as error:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} is not set: start with torchrun, or unset WORLD_SIZE"
        ) from error


def _join(backend: str) -> None:
    rank, world = int(_environment("RANK")), int(_environment("WORLD_SIZE"))
    address = f"{_environment('MASTER_ADDR')}:{_environment('MASTER_PORT')}"
    try:
        store = open_store(address, rank, world)
        store.set_timeout(_OPERATION)
        generation = meet(PrefixStore(f"convnext/{os.environ.get('TORCHELASTIC_RUN_ID', '')}", store), rank, world, backend=backend)
        fresh = PrefixStore(generation, store)
        start = partial(dist.init_process_group, backend, store=fresh, rank=rank, world_size=world, timeout=_CONNECT)
        start() if backend == "nccl" else _connect(start)  # NCCL connects later, in its first operation
    except RuntimeError as error:
        raise ConvnextError(
            f"rank {rank} could not connect to the other {world - 1} processes at {address}: {first_line(error)}"
        ) from error
    set_timeout = cast(Callable[[timedelta], None], getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout))  # until torch 2.14
    set_timeout(_OPERATION)


def _connect(work: Callable[[], None]) -> None:
    # Gloo's listening side never gives up, whatever the timeout, if the process that should connect is gone. It can't be interrupted
    # either, so it is left alone in a thread of its own.
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(2 * _CONNECT.total_seconds())
    if thread.is_alive():
        raise ConvnextError(f"one of the processes went away while they connected (waited {2 * _CONNECT.total_seconds():.0f} s)")
    if errors:
        raise errors[0]


def pick_device(name: str | None = None) -> torch.device:
    """Return the device of that name, by default the fastest: CUDA, Apple's, or the CPU. Raises UsageError if the machine lacks it."""
    if name is None:
        cuda, apple = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if apple else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"no device {name!r} on this machine ({reason}); without --device the fastest one is used") from error
    return device


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the process that writes files and messages."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """Return on every process the values of all, in the order of their ranks."""
    if world() == 1:
        return [value]
    values = [value] * world()
    dist.all_gather_object(values, value)
    values[rank()] = value  # no copy: a metric knows its source, which it does not send
    return values


def from_main(value: T) -> T:
    """Return the main process's value on every process."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def take_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Copy the main process's values into tensors, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def on_main(work: Callable[[], T]) -> T:
    """Do work on the main process alone; return its result, or raise its error, on every process."""
    if world() == 1:
        return work()
    value, error = _attempt(work) if is_main() else (None, None)
    value, reported = from_main((value, _portable(error)))
    if failed := error or reported:
        raise failed
    return cast(T, value)


def on_all(work: Callable[[], T]) -> T:
    """Do work on every process; return this one's result. If it fails on one, raise its error on all, so that none waits for it."""
    if world() == 1:
        return work()
    value, error = _attempt(work)
    errors = gather(_portable(error))
    first, reported = next(((number, other) for number, other in enumerate(errors) if other), (None, None))
    if reported is None:
        return cast(T, value)
    raise error if error and first == rank() else reported


def check_agreement(value: object, what: str) -> None:
    """Raise ConvnextError on all processes unless all have the same value; `what` describes it."""
    values = gather(value)
    if different := [number for number, other in enumerate(values) if other != values[0]]:
        error = ConvnextError(
            f"{what}: rank {different[0]} finds {values[different[0]]}, rank 0 {values[0]}; "
            "all processes must see the same files: check that their folders are shared or equal"
        )
        error.elsewhere = not is_main()
        raise error


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _portable(error: Exception | None) -> ConvnextError | None:
    """Return an error as the other processes raise it: its own process alone reports it."""
    if error is None:
        return None
    defect = "" if isinstance(error, ConvnextError) else f"{type(error).__name__}: "
    kind = type(error) if isinstance(error, ConvnextError) else ConvnextError
    copy = kind(f"rank {rank()}: {defect}{error}")
    copy.elsewhere = True
    return copy


def mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes, computed in place."""
    if world() > 1:
        dist.all_reduce(values)
        values /= world()
    return values
