"""Read a part of an open file, from several threads and processes at once."""

import os
import threading
from typing import BinaryIO

_seeking = threading.Lock()


def read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    """Return `size` bytes of a file from `offset` on, fewer at its end. Safe in threads and after a fork. Raises OSError.

    Windows, which forks no processes, has no `pread`: there one thread at a time reads.
    """
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
    with _seeking:
        file.seek(offset)
        return file.read(size)
