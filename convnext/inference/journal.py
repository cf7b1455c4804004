"""Files that are appended to, and gone on with after the process that wrote them was stopped or killed."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from convnext.errors import UsageError, writing


class Journal:
    """A file of records that end with a newline; one process at a time has it open.

    Whoever opens it reads its `records` and says with `keep` up to where they are good; then it can be appended to.

    Raises UsageError if another process has it open, ConvnextError if it can't be written.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unlike mode "a" this lets `replace` write anywhere, and unlike "w" it keeps what there is.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"{path} is being written by another process: wait for it, or choose another file") from error
            self.written = os.fstat(self._file.fileno()).st_mtime_ns  # when the last answer was, before this process
            if overwrite:
                self._file.truncate(0)

    def records(self, is_whole: Callable[[bytes], bool] = bool) -> Iterator[tuple[bytes, int]]:
        """The records with the position behind each, less a last one that was cut off; lines are joined until `is_whole`."""
        record, end = b"", 0
        with self.path.open("rb") as file:
            for line in file:
                record += line
                if line.endswith(b"\n") and is_whole(record):
                    end += len(record)
                    yield record, end
                    record = b""

    def keep(self, size: int, begin: bytes = b"") -> None:
        """Drop what is behind that position. Raises UsageError, and drops nothing, if it does not begin as our records do."""
        self._file.seek(size)
        cut = self._file.read(len(begin))
        if not begin.startswith(cut):
            raise self.foreign(f"does not go on as what `convnext predict` writes at byte {size}")
        with writing(self.path):
            self._file.truncate(size)
            self._file.flush()
            os.utime(self.path, ns=(self.written, self.written))  # nothing was written

    def append(self, content: bytes) -> None:
        """Add to the end; on the disk when this returns. Raises ConvnextError if it can't be written."""
        self._file.seek(0, os.SEEK_END)
        self._write(content)

    def replace(self, content: bytes) -> None:
        """Put other bytes in place of as many at the beginning."""
        self._file.seek(0)
        self._write(content)

    def _write(self, content: bytes) -> None:
        with writing(self.path):
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())

    def foreign(self, fault: str) -> UsageError:
        """The error to raise where what the file holds is not what it should."""
        return UsageError(f"{self.path} can't be gone on with: it {fault}; choose another file, or add --overwrite to replace it")


def refuse_foreign(made: Path, journal: Path, overwrite: bool) -> None:
    """Raise UsageError if a file that is made of a journal is there and its journal is not: then it is someone else's."""
    if made.exists() and not journal.exists() and not overwrite:
        raise UsageError(f"{made} is there already, and {journal}, with which to go on, is not: choose another file, or add --overwrite")
