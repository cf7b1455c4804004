"""One process or many: what the rest needs to know of it. Under torchrun each process trains on its share of every batch.

Outside torchrun everything here is the one-process case of itself, so that there is no other code path.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from convnext.errors import ConvnextError, UsageError

_ATTEMPTS = 4
_CONNECT, _OPERATION = timedelta(seconds=30), timedelta(minutes=30)


@contextmanager
def process_group(device: str | None = None) -> Iterator[torch.device]:
    """Within, the processes that torchrun started are one group; gives this process's device.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is. Under torchrun CUDA devices are dealt out by
            local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield pick_device(device)
        return
    use_cuda = torch.cuda.is_available() and device in (None, "cuda")
    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {device}: under torchrun give cpu or cuda; the number follows from the local rank")
    place = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    _join("nccl" if use_cuda else "gloo")
    try:
        yield place
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    # Gloo connects all pairs at once, within the time that it later gives an operation: half an hour, for evaluations and saves
    # that others wait for. A connection is made in a second or never: after torchrun had restarted its workers, two were seen to
    # listen for each other forever. So all meet at the store, however late they start, connect with little time, and try again.
    store, rank, world = next(rendezvous("env://"))
    for attempt in range(_ATTEMPTS):
        fresh = PrefixStore(f"attempt_{attempt}", store)
        fresh.set(f"ready_{rank}", "")
        fresh.wait([f"ready_{other}" for other in range(world)], _OPERATION)
        try:
            dist.init_process_group(backend, store=fresh, rank=rank, world_size=world, timeout=_CONNECT)
        except RuntimeError as error:
            if attempt == _ATTEMPTS - 1:
                raise ConvnextError(f"the {world} processes could not connect in {_ATTEMPTS} attempts: {error}") from error
        else:
            set_timeout: Any = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)  # its name until torch 2.14
            set_timeout(_OPERATION)
            return


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


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes."""
    if world() > 1:
        dist.all_reduce(values)
        values /= world()
    return values
