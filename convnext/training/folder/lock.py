"""One process at a time trains in a run folder."""

import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from convnext.errors import UsageError
from convnext.models.weights.files import unwritable, write_text
from convnext.training.folder.run_paths import HOLDER, LOCK

_DYING = 15.0  # seconds after which the decoding workers of a killed process, which share its lock, have ended
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def locked(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Within, no other process holds this folder. A missing folder is made, and removed again if it stays empty.

    The system releases the lock when the process ends, however that happens. Readers don't need it. A file system without locks is
    reported through `report`.

    Raises UsageError, naming the holder, if another process holds the folder, ConvnextError if it can't be written.
    """
    made = _make(folder)
    lock = FileLock(folder / LOCK)
    try:
        _acquire(lock, folder)
    except (OSError, NotImplementedError) as error:  # older versions of filelock raise the second where there are no locks
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            _remove(folder, made)
            raise unwritable(folder / LOCK, error) from error
        report(f"the file system of {folder} has no locks: make sure that no other process trains there")
    try:
        write_text(folder / HOLDER, json.dumps(_holder()) + "\n")
        yield
    finally:
        for name in (HOLDER, LOCK):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        lock.release()
        _remove(folder, made)


def _make(folder: Path) -> list[Path]:
    """Make a folder; return the folders that were missing, the deepest first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} can't be a run folder, because a file is in its way: choose another for --output") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    return made


def _remove(folder: Path, made: list[Path]) -> None:
    with suppress(OSError):  # as soon as one is not empty
        for path in made:
            path.rmdir()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=1)  # one that was just killed may take a moment
    except Timeout as error:
        holder = _read_holder(folder)
        if not _is_alive(holder):
            with suppress(Timeout):
                lock.acquire(timeout=_DYING)
                return
        raise UsageError(f"{folder} is in use by {_described(holder)}: wait for it, stop it, or choose another folder") from error


def _holder() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": command}


def _read_holder(folder: Path) -> dict[str, str | int]:
    try:
        found = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):  # the holder is about to write it
        return {}


def _is_alive(holder: dict[str, str | int]) -> bool:
    """Return whether the holder is certainly alive; a holder on another machine is not known to be."""
    if holder.get("host") != socket.gethostname():
        return False
    if os.name == "nt":  # there a killed process leaves nobody who shares its lock, and `os.kill` would end the holder
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except (OSError, KeyError, ValueError):
        return True
    with suppress(OSError):  # a zombie is dead: its parent has not waited for it yet
        return Path(f"/proc/{holder['pid']}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return True


def _described(holder: dict[str, str | int]) -> str:
    if not {"host", "pid", "since"} <= holder.keys():
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
