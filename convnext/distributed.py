"""One process or many: what the rest needs to know of it. Under torchrun each process trains on its share of every batch.

Outside torchrun everything here is the one-process case of itself, so that there is no other code path.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from convnext.errors import ConvnextError, UsageError, first_line

T = TypeVar("T")

_MEET, _REPORT_AFTER, _REPORT_EVERY = 600.0, 15.0, 60.0  # seconds that processes wait for each other to start, and say so
_CONNECT, _OPERATION = timedelta(minutes=1), timedelta(minutes=30)
_GENERATION = "generation"


@contextmanager
def process_group(device: str | None = None) -> Iterator[torch.device]:
    """Within, the processes that torchrun started are one group; gives this process's device.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is. In a group CUDA devices are assigned by local
            rank.

    A group that the caller has made is used as it is. Raises ConvnextError, naming who is missing, if the processes do not meet
    within ten minutes, and where the connection to another process breaks.
    """
    if world() == 1 and (dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1):
        yield pick_device(device)
    elif dist.is_initialized():
        yield _device_of_rank(device, os.environ.get("LOCAL_RANK"))
    else:
        if device not in (None, "cpu", "cuda"):
            raise UsageError(f"--device {device}: under torchrun give cpu or cuda; the number follows from the local rank")
        place = _device_of_rank(device, _environment("LOCAL_RANK"))
        _join("nccl" if place.type == "cuda" else "gloo")
        try:
            with _broken_connections():
                yield place
        finally:
            dist.destroy_process_group()


def _device_of_rank(device: str | None, local_rank: str | None) -> torch.device:
    """The device of this process alone; sets the current CUDA device, which NCCL uses."""
    if device not in (None, "cuda") or (device is None and not torch.cuda.is_available()):
        return pick_device(device or "cpu")
    pick_device("cuda")
    count = torch.cuda.device_count()
    if local_rank is not None and int(local_rank) >= count:
        raise UsageError(f"no CUDA device for local rank {local_rank}: this machine has {count}; start at most {count} processes on it")
    # A caller who made the group without torchrun has chosen a device before, or has one process a device.
    number = int(local_rank) if local_rank is not None else torch.cuda.current_device() or rank() % count
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def _broken_connections() -> Iterator[None]:
    """An error of the connection between processes becomes one that says where to look."""
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
        store = _open_store(address, rank, world)
        store.set_timeout(_OPERATION)
        generation = meet(PrefixStore(f"convnext/{os.environ.get('TORCHELASTIC_RUN_ID', '')}", store), rank, world, backend=backend)
        fresh = PrefixStore(generation, store)
        start = partial(dist.init_process_group, backend, store=fresh, rank=rank, world_size=world, timeout=_CONNECT)
        start() if backend == "nccl" else _connect(start)  # NCCL connects later, in its first operation
    except RuntimeError as error:
        raise ConvnextError(
            f"rank {rank} could not connect to the other {world - 1} processes at {address}: {first_line(error)}"
        ) from error
    set_timeout: Any = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)  # its name until torch 2.14
    set_timeout(_OPERATION)


@cache  # a second run of the same processes meets at the same store: its server must not close between them
def _open_store(address: str, rank: int, world: int) -> Store:
    host, _, port = address.rpartition(":")
    is_server = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # otherwise torchrun's agent serves it
    wait = _Wait(rank, world, _MEET)
    while True:
        try:
            return TCPStore(host, int(port), world, is_server, timedelta(seconds=_REPORT_AFTER), wait_for_workers=False, multi_tenant=True)
        except dist.DistNetworkError:
            if is_server:  # the port is taken
                raise
            wait.pause([0])


def meet(store: Store, rank: int, world: int, limit: float = _MEET, backend: str = "gloo") -> str:
    """Wait until all processes are there; returns a name that they share and that no processes before them had.

    torchrun keeps one store however often it restarts its processes, so whatever is in it may be of processes that are dead by
    now, at whatever point they died. Rank 0 publishes a generation, a fresh name; each other answers under that name with a nonce
    of its own; when all have, rank 0 publishes the nonces. Who finds its own nonce among them knows that rank 0 saw it, and so that
    both are alive; who does not waits for the next generation.

    Raises ConvnextError, naming who is missing, after `limit` seconds, and on all UsageError if their backends differ.
    """
    own, wait = f"{world}-{uuid4().hex}-{backend}", _Wait(rank, world, limit)
    if rank == 0:
        answers = {other: f"{own}/{other}" for other in range(1, world)}
        while missing := [other for other, key in answers.items() if not store.check([key])]:
            if not store.check([_GENERATION]) or store.get(_GENERATION).decode() != own:  # of processes that are being ended
                store.set(_GENERATION, own)
            wait.pause(missing)
        all_of_them = [own, *(store.get(key).decode() for key in answers.values())]
        store.set(f"{own}/all", " ".join(all_of_them))
        return _same_backend(all_of_them)
    answered = ""
    while True:
        generation = store.get(_GENERATION).decode() if store.check([_GENERATION]) else ""
        if generation.startswith(f"{world}-"):
            if generation != answered:
                store.set(f"{generation}/{rank}", own)
                answered = generation
            all_of_them = store.get(f"{generation}/all").decode().split() if store.check([f"{generation}/all"]) else []
            if own in all_of_them:
                return _same_backend(all_of_them)
        others = [other for other in range(1, world) if not (answered and store.check([f"{answered}/{other}"]))]
        wait.pause([other for other in others if other != rank] if answered and len(others) else [0])


def _same_backend(nonces: list[str]) -> str:
    """The first of the nonces, which names the generation."""
    backends = [nonce.rpartition("-")[2] for nonce in nonces]
    for rank, backend in enumerate(backends):
        if backend != backends[0]:
            raise UsageError(f"rank {rank} would use {backend}, rank 0 {backends[0]}: give --device cpu, or a CUDA device to each process")
    return nonces[0]


class _Wait:
    """Waiting for other processes: in growing pauses, reported now and then, and not for ever."""

    def __init__(self, rank: int, world: int, limit: float) -> None:
        self.rank, self.world, self.limit = rank, world, limit
        self.begun = time.monotonic()
        self.report_at, self.length = self.begun + _REPORT_AFTER, 0.02

    def pause(self, missing: Sequence[int]) -> None:
        """Wait a moment for these ranks. Raises ConvnextError when the time is over."""
        now = time.monotonic()
        names = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        told = f"{len(missing)} of {self.world} processes: rank{'s' if len(missing) > 1 else ''} {names}"
        if now - self.begun > self.limit:
            raise ConvnextError(
                f"rank {self.rank} waited {self.limit / 60:.3g} minutes for {told}: see why they did not start, and start all of them again"
            )
        if now > self.report_at:
            self.report_at = now + _REPORT_EVERY
            if self.rank == 0 or (self.rank == 1 and list(missing) == [0]):  # one of them says it
                print(f"waiting for {told}", file=sys.stderr, flush=True)
        time.sleep(self.length)
        self.length = min(1.5 * self.length, 0.5)


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
    """The device of that name, or the fastest there is: CUDA, Apple's, or the CPU. Raises UsageError if it is not there."""
    if name is None:
        cuda, apple = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if apple else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"no device {name!r} on this machine ({reason}); leave --device out for the fastest there is") from error
    return device


def rank() -> int:
    """Our process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and shows."""
    return rank() == 0


def gather(value: Any) -> list[Any]:
    """The values that all processes give, in the order of their ranks, on all of them."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """The main process's value, on all of them."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def take_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors the main process's values, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives on the main process, which alone does it, on all of them; its error is raised on all of them."""
    if world() == 1:
        return work()
    value, error = _attempt(work) if is_main() else (None, None)
    value, told = from_main((value, _portable(error)))
    if error or told:
        raise error or told
    return value


def on_all(work: Callable[[], T]) -> T:
    """What `work` gives on this process. Where it fails on one, its error is raised on all of them, so that none waits for it."""
    if world() == 1:
        return work()
    value, error = _attempt(work)
    errors = gather(_portable(error))
    first = next((number for number, told in enumerate(errors) if told), None)
    if first is None:
        return value  # type: ignore[return-value]
    raise error if error and first == rank() else errors[first]


def check_agreement(value: Any, what: str) -> None:
    """Raise ConvnextError on all processes unless they all give the same value; `what` says what it is."""
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
    """An error as the other processes raise it: they don't report it, its own process does."""
    if error is None:
        return None
    defect = "" if isinstance(error, ConvnextError) else f"{type(error).__name__}: "
    kind = type(error) if isinstance(error, ConvnextError) else ConvnextError
    copy = kind(f"rank {rank()}: {defect}{error}")
    copy.elsewhere = True
    return copy


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes."""
    if world() > 1:
        dist.all_reduce(values)
        values /= world()
    return values
