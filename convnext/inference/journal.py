"""Append-only files that can be resumed after the process that wrote them was stopped or killed."""

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from convnext.errors import UsageError, writing


class Journal:
    """A file of records that end with a newline. Only one process at a time can open it.

    The caller reads the `records`, reports with `keep` up to which position they are valid, and can then append.

    Raises UsageError if another process has the file open, ConvnextError if it can't be written.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _lock(self, path)
            # Unlike mode "a" this lets `replace` write anywhere, and unlike "w" it keeps the content.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
            self.written = os.fstat(self._file.fileno()).st_mtime_ns  # time of the last record of an earlier process
            if overwrite:
                self._file.truncate(0)

    def records(self, is_complete: Callable[[bytes], bool] = bool) -> Iterator[tuple[bytes, int]]:
        """Yield each record with the position behind it, except a last one that was cut off; lines are joined until `is_complete`."""
        record, end = b"", 0
        with self.path.open("rb") as file:
            for line in file:
                record += line
                if line.endswith(b"\n") and is_complete(record):
                    end += len(record)
                    yield record, end
                    record = b""

    def keep(self, size: int, begin: bytes = b"") -> None:
        """Drop everything behind that position. Raises UsageError, and drops nothing, if it does not begin as our records do."""
        self._file.seek(size)
        cut = self._file.read(len(begin))
        if not begin.startswith(cut):
            raise self.foreign(f"has content at byte {size} that `convnext predict` did not write")
        with writing(self.path):
            self._file.truncate(size)
            self._file.flush()
            os.utime(self.path, ns=(self.written, self.written))  # nothing was written

    def append(self, content: bytes) -> None:
        """Add to the end; on the disk when this returns. Raises ConvnextError if it can't be written."""
        self._file.seek(0, os.SEEK_END)
        self._write(content)

    def replace(self, content: bytes) -> None:
        """Overwrite as many bytes at the beginning."""
        self._file.seek(0)
        self._write(content)

    def _write(self, content: bytes) -> None:
        with writing(self.path):
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())

    def foreign(self, fault: str) -> UsageError:
        """Return the error to raise if the file does not hold what it should."""
        return UsageError(f"{self.path} can't be resumed: it {fault}; choose another file, or add --overwrite to replace it")


def refuse_foreign(made: Path, journal: Path, overwrite: bool) -> None:
    """Raise UsageError if a file exists that is made from a journal, and the journal does not: someone else wrote it."""
    if made.exists() and not journal.exists() and not overwrite:
        raise UsageError(f"{made} exists already, but {journal}, which resumes it, does not: choose another file, or add --overwrite")


def _lock(journal: Journal, path: Path) -> None:
    """Hold the file's lock for as long as the journal exists. The system ends it with the process, however that ends."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)  # released by whichever thread drops the journal
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"{path} is being written by another process: wait for it, or choose another file") from error
    weakref.finalize(journal, _release, lock, os.getpid())


def _release(lock: FileLock, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has a copy of the journal, but not the lock
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
