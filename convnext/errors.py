"""Errors that a user can act on. Each message names the thing, says what is wrong, and says what to do.

The command line prints the message on one line and exits with `exit_code`. Every other exception is a defect of convnext, or
of a user's own code where it came through that.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType


class ConvnextError(Exception):
    """The work failed for a reason outside the program: a file, a network, a number that is not finite."""

    exit_code = 1
    elsewhere = False  # whether it happened in another process of the group, which reports it


class UsageError(ConvnextError, ValueError):
    """The request is invalid: an unknown model, recipe, key or option, or a contradiction."""

    exit_code = 2


class CorruptImageError(ConvnextError):
    """An image that can't be read. Its message is the file and the reason, on one line."""


class NotFiniteError(ConvnextError):
    """The output of a network contains NaN or infinity."""

    def __init__(self) -> None:
        super().__init__(
            "the network's output is not finite (NaN or infinite): its weights are damaged, or the run diverged; use other weights"
        )


class TooLargeError(ConvnextError):
    """The request takes more memory or time than the caller allows."""


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known word nearest to `word`, or the list of known words if it is short.

    >>> nearest("convnext_tny", ["convnext_tiny", "convnext_base"])
    "; did you mean 'convnext_tiny'?"
    """
    known = sorted(known)
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f"; did you mean {close[0]!r}?"
    if len(known) <= 12:
        return f"; known: {', '.join(known)}"
    return f"; {len(known)} are known"


def nearest_path(path: Path) -> str:
    """Return the end of an error message on a path that does not exist: the most similar name beside it, if there is one."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.6)
    return f"; did you mean {str(path.with_name(close[0]))!r}?" if close else ""


def need(module: str, extra: str) -> ModuleType:
    """Import and return an optional module. Raises UsageError, naming the extra to install, if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"this needs {module}: run pip install '.[{extra}]' in a clone of convnext") from error


def is_disk_full(error: BaseException) -> bool:
    """Return whether a failure to write means a full disk or an exhausted quota.

    PyTorch and safetensors, which write files themselves, say so only in the text of their errors.
    """
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or (code is None and _FULL.search(str(error)) is not None)


_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|os error (28|122)\b|enforce fail at inline_container|unexpected pos \d+ vs"
)


def disk_full(path: Path) -> ConvnextError:
    """Return the error for a file whose disk is full."""
    return ConvnextError(f"disk full while writing {path}: free some space, then resume")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write, for instance a full disk, into a ConvnextError that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise ConvnextError(f"could not write {path}: {error}; fix that, and the same command continues where it stopped") from error
