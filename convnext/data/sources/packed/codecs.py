"""FFmpeg's codecs in a process that forks.

A codec runs threads of its own. A forked process has the codec without its threads. It would wait for them without end where it frees the
codec, as Python's garbage collector may at any time. So a forked process never frees the codecs that it inherits.
"""

import os
from weakref import WeakSet

_OPEN: WeakSet[object] = WeakSet()
_INHERITED: list[object] = []


def keep_when_forked(owner: object) -> None:
    """Keep an object that holds codecs, and is freed with them, alive in the processes that are forked while it exists."""
    _OPEN.add(owner)


if hasattr(os, "register_at_fork"):  # Windows forks no processes
    os.register_at_fork(after_in_child=lambda: _INHERITED.extend(_OPEN))
