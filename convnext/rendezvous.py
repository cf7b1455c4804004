"""How processes meet at a store that outlives them, as torchrun's does."""

import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from uuid import uuid4

import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from convnext.errors import ConvnextError, UsageError

_MEET, _REPORT_AFTER, _REPORT_EVERY = 600.0, 15.0, 60.0  # seconds: the limit for a start, and when waiting is reported
_GENERATION = "generation"


@cache  # a second run of the same processes meets at the same store: its server must not close between them
def open_store(address: str, rank: int, world: int) -> Store:
    """Return the store at "host:port", which rank 0 serves unless torchrun's agent does."""
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
    """Wait until all processes are there; return a name that they share and that no processes before them had.

    torchrun keeps one store however often it restarts its processes, so whatever is in it may be of processes that are dead by
    now, at whatever point they died. Rank 0 publishes a generation, a fresh name; each other answers under that name with a nonce
    of its own; when all have, rank 0 publishes the nonces. A process that finds its own nonce among them knows that rank 0 saw it,
    and so that both are alive; a process that does not waits for the next generation.

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
    """Return the first of the nonces, which names the generation."""
    backends = [nonce.rpartition("-")[2] for nonce in nonces]
    for rank, backend in enumerate(backends):
        if backend != backends[0]:
            raise UsageError(f"rank {rank} would use {backend}, rank 0 {backends[0]}: give --device cpu, or a CUDA device to each process")
    return nonces[0]


class _Wait:
    """Waits for other processes: in growing pauses, with a report now and then, up to a limit."""

    def __init__(self, rank: int, world: int, limit: float) -> None:
        self.rank, self.world, self.limit = rank, world, limit
        self.begun = time.monotonic()
        self.report_at, self.length = self.begun + _REPORT_AFTER, 0.02

    def pause(self, missing: Sequence[int]) -> None:
        """Wait a moment for these ranks. Raises ConvnextError when the time is over."""
        now = time.monotonic()
        ranks = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        waited_for = f"{len(missing)} of {self.world} processes: rank{'s' if len(missing) > 1 else ''} {ranks}"
        if now - self.begun > self.limit:
            raise ConvnextError(
                f"rank {self.rank} waited {self.limit / 60:.3g} minutes for {waited_for}: "
                "see why they did not start, and start all of them again"
            )
        if now > self.report_at:
            self.report_at = now + _REPORT_EVERY
            if self.rank == 0 or (self.rank == 1 and list(missing) == [0]):  # one of them says it
                print(f"waiting for {waited_for}", file=sys.stderr, flush=True)
        time.sleep(self.length)
        self.length = min(1.5 * self.length, 0.5)
