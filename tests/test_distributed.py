"""How processes meet, and how they agree on what to do: at a store that outlives them, as torchrun's does."""

import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from convnext import distributed, rendezvous
from convnext.errors import ConvnextError, UsageError
from convnext.rendezvous import meet


@pytest.fixture
def store():
    """The server, as torchrun's agent keeps it."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class DeadError(Exception):
    """What ends a participant in these tests."""


class Mortal:
    """A connection to the store that dies at its n-th operation, and all of its incarnation with it."""

    def __init__(self, store, dead, at=None):
        self.client = TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=20))
        self.dead, self.left = dead, at

    def _count(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.dead.set()
        if self.dead.is_set():
            raise DeadError

    def set(self, key, value):
        self._count()
        self.client.set(key, value)

    def get(self, key):
        self._count()
        return self.client.get(key)

    def check(self, keys):
        self._count()
        return self.client.check(keys)


def incarnation(store, world, deaths=None, late=None, limit=20):
    """What each rank of one incarnation came to: the name they share, or an error. `deaths` and `late`: {rank: operations, seconds}."""
    dead, found = threading.Event(), {}

    def one(rank):
        time.sleep((late or {}).get(rank, 0))
        try:
            found[rank] = meet(Mortal(store, dead, (deaths or {}).get(rank)), rank, world, limit)
        except (DeadError, ConvnextError) as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(world)]


@pytest.mark.parametrize("rank", [0, 1])
def test_who_died_at_any_point_of_the_handshake_is_not_met_again(store, rank):
    seen = set()
    for operations in range(9):
        before = incarnation(store, 3, deaths={rank: operations}, late={operations % 3: 0.03})
        seen.update(name for name in before if isinstance(name, str))
        after = incarnation(store, 3, late={operations % 2: 0.05})
        assert len(set(after)) == 1
        assert isinstance(after[0], str), after
        assert after[0] not in seen
        seen.add(after[0])


def test_a_group_of_another_size_meets_at_the_same_store(store):
    """Elastic: machines left or joined, and torchrun counts no restart."""
    names = [incarnation(store, world)[0] for world in (3, 2, 4, 4)]
    assert len(set(names)) == 4


def test_who_is_missing_is_named_and_not_waited_for_for_ever(store, capsys, monkeypatch):
    monkeypatch.setattr(rendezvous, "_REPORT_AFTER", 0.2)
    errors = missing(store, 4, (0, 2), 1)
    assert all(
        str(error).endswith("for 2 of 4 processes: ranks 1, 3: see why they did not start, and start all of them again") for error in errors
    )
    assert len(errors) == 2
    assert "waiting for 2 of 4 processes: ranks 1, 3" in capsys.readouterr().err
    errors = missing(store, 4, (1, 2, 3), 1)
    assert len(errors) == 3
    assert all("for 1 of 4 processes: rank 0" in str(error) for error in errors)
    assert capsys.readouterr().err == "waiting for 1 of 4 processes: rank 0\n"


def test_a_process_that_lacks_its_device_is_named(store):
    found = {}

    def one(rank):
        with pytest.raises(UsageError) as error:
            meet(Mortal(store, threading.Event()), rank, 2, backend=("nccl", "gloo")[rank])
        found[rank] = str(error.value)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found.values()) == {"rank 1 would use gloo, rank 0 nccl: give --device cpu, or a CUDA device to each process"}


def missing(store, world, there, limit):
    """The errors of those who are there."""
    errors = []

    def one(rank):
        try:
            meet(Mortal(store, threading.Event()), rank, world, limit)
        except ConvnextError as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in there]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


GROUP = """
import os, sys, time
from convnext import distributed
from convnext.errors import ConvnextError, UsageError
time.sleep(float(sys.argv[1]))
rank = int(os.environ["RANK"])
def fails(on):
    if rank in on:
        raise UsageError(f"no folder photos{rank}")
    return "fine"
def outcome(work):
    try:
        return work()
    except ConvnextError as error:
        return f"{type(error).__name__} {error} {error.elsewhere}"
try:
    with distributed.process_group("cpu"):
        exec(sys.argv[2])
except ConvnextError as error:
    print(f"error: {error}", flush=True)
    sys.exit(error.exit_code)
"""


def start(port, rank, code, late=0.0, agent=False, world=2):
    environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": str(agent)}
    command = [sys.executable, "-c", GROUP, str(late), code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def group(store, code, late=(0, 0), **how):
    """What two processes print, with their exit codes."""
    processes = [start(store.port, rank, code, late[rank], agent=True, **how) for rank in range(2)]
    return [(process.communicate(timeout=300)[0].splitlines(), process.returncode) for process in processes]


@pytest.mark.slow
def test_processes_restarted_at_one_store_connect_though_one_is_late(store):
    """The agent of torchrun keeps its store: Gloo's addresses in it are those of dead processes."""
    code = "print(distributed.gather(rank), flush=True); os._exit(9)"
    assert group(store, code) == [(["[0, 1]"], 9)] * 2
    assert group(store, "print(distributed.gather(rank))", late=(0, 2)) == [(["[0, 1]"], 0)] * 2


def test_without_torchrun_the_main_process_serves_the_store_and_may_come_last():
    with_free_port = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = with_free_port.port
    del with_free_port
    processes = [start(port, rank, "print(distributed.gather(rank))", late) for rank, late in enumerate((1.5, 0))]
    assert [process.communicate(timeout=300)[0] for process in processes] == ["[0, 1]\n"] * 2


@pytest.mark.slow
def test_what_fails_on_one_process_is_raised_on_all_and_reported_by_one(store):
    code = """
print(outcome(lambda: distributed.on_main(lambda: fails({0}))))
print(outcome(lambda: distributed.on_main(lambda: f"{fails({1})} {rank}")))
print(outcome(lambda: distributed.on_all(lambda: fails({1}))))
print(outcome(lambda: distributed.on_all(lambda: fails({0, 1}))))
print(outcome(lambda: distributed.on_all(lambda: f"{fails({})} {rank}")))
print(outcome(lambda: distributed.check_agreement(rank, "pages")))
"""
    (main, _), (other, _) = group(store, code)
    differ = (
        "ConvnextError pages: rank 1 finds 1, rank 0 0; all processes must see the same files: check that their folders are shared or equal"
    )
    assert main == [
        "UsageError no folder photos0 False",
        "fine 0",
        "UsageError rank 1: no folder photos1 True",
        "UsageError no folder photos0 False",
        "fine 0",
        f"{differ} False",
    ]
    assert other == [
        "UsageError rank 0: no folder photos0 True",
        "fine 0",
        "UsageError no folder photos1 False",
        "UsageError rank 0: no folder photos0 True",
        "fine 1",
        f"{differ} True",
    ]


@pytest.mark.slow
def test_a_connection_that_breaks_is_no_defect(store):
    code = "os._exit(3) if rank else None; distributed.gather(rank); distributed.gather(rank)"
    (main, main_code), (_, other_code) = group(store, code)
    assert (main_code, other_code) == (1, 3)
    assert main[0].startswith("error: rank 0 lost the connection to another process (")
    assert main[0].endswith("): that one's message has the reason; the same command with --resume continues")


@pytest.mark.slow
def test_a_process_that_dies_while_they_connect_is_not_waited_for_for_ever(store):
    """Gloo's listening side would listen for ever: rank 0 publishes its address and dies before rank 1 looks for it."""
    dies = "import threading; threading.Timer(1, lambda: os._exit(9)).start()"
    looks_late = "import time; start = distributed.dist.init_process_group\n"
    looks_late += "distributed.dist.init_process_group = lambda *a, **k: (time.sleep(3), start(*a, **k))\n"
    short = "from datetime import timedelta; distributed._CONNECT = timedelta(seconds=3)\n"
    program = f"{short}{{0}}\nwith distributed.process_group('cpu'): pass"
    processes = []
    for rank, more in enumerate(
        (f"meet = distributed.meet\ndistributed.meet = lambda *a, **k: (meet(*a, **k), exec({dies!r}))[0]", looks_late)
    ):
        code = GROUP.split("try:\n    with")[0] + program.format(more)
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        processes.append(subprocess.Popen([sys.executable, "-c", code, "0"], env=environment, stderr=subprocess.PIPE, text=True))
    assert processes[0].wait(300) == 9
    assert "one of the processes went away while they connected (waited 6 s)" in processes[1].communicate(timeout=300)[1]


def test_each_process_of_a_callers_group_has_its_own_device(monkeypatch):
    """CUDA as PyTorch reports it on a machine with four devices; which one a process is given needs none."""
    chosen = []
    for name, value in {"is_available": True, "device_count": 4, "current_device": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(distributed, "pick_device", lambda name: torch.device(name))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 6)
    with distributed.process_group() as device:
        assert device == torch.device("cuda", 2)  # two machines of four
    monkeypatch.setenv("LOCAL_RANK", "1")
    with distributed.process_group("cuda") as device:
        assert device == torch.device("cuda", 1)
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu")
    assert chosen == [torch.device("cuda", 2).index, 1]
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UsageError, match="no CUDA device for local rank 4: this machine has 4"), distributed.process_group():
        pass


def test_a_number_of_processes_without_an_address_is_explained(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    message = "WORLD_SIZE is 2, but LOCAL_RANK is not set: start with torchrun, or unset WORLD_SIZE"
    with pytest.raises(UsageError, match=message), distributed.process_group("cpu"):
        pass
