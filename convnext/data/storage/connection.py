"""Calls of fsspec: each has a time limit, and its failures become errors that name the address and the remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import iscoroutinefunction
from typing import Any
from urllib.parse import urlsplit

from convnext.data.download import REMOTE
from convnext.errors import ConvnextError, UsageError, first_line, nearest

SILENCE = 60  # seconds that a call may take which moves at most PIECE bytes
PIECE = 8 << 20
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")  # two letters at least: one is a drive of Windows


class StorageError(ConvnextError):
    """The storage does not answer, or refuses. Another attempt may succeed, so this is no property of the object."""


def is_stored(where: str) -> bool:
    """Return whether a name is an address in storage: it has a scheme that is not one of `convnext.data.download`'s."""
    return _SCHEME.match(where) is not None and not where.startswith(REMOTE)


def scheme_of(address: str) -> str:
    """Return the scheme of an address in storage, as "s3"."""
    match = _SCHEME.match(address)
    assert match is not None
    return match[1]


def connect(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it.

    Raises UsageError for an unknown scheme, one whose package is not installed, and an address with a password; StorageError if the
    storage can't be reached.
    """
    from fsspec.core import url_to_fs  # imported here: most calls of convnext name no storage
    from fsspec.registry import available_protocols, known_implementations, registry

    scheme = scheme_of(address)
    if urlsplit(address.partition("?")[0]).password is not None:
        raise UsageError(f"an address of {scheme}:// holds a password: put it into fsspec's configuration, ~/.config/fsspec/{scheme}.json")
    if "::" in address:
        raise UsageError(f"{address}: chained addresses are not supported: name one object or folder")
    if scheme not in (known := {*available_protocols(), *registry}):
        raise UsageError(f"{address}: fsspec has no storage {scheme}://{nearest(scheme, known)}")
    with failing(address, "open"):
        try:
            found, path = url_to_fs(address)
        except ImportError as error:
            package = str(known_implementations.get(scheme, {}).get("class", "fsspec")).partition(".")[0]
            remedy = first_line(error) if package == "fsspec" else f"run pip install {package}"
            raise UsageError(f"{address}: {scheme}:// needs another package: {remedy}") from error
    return found, str(path)


def call(address: str, method: str, *arguments: object, doing: str = "read", seconds: float = SILENCE, **options: object) -> Any:
    """Return the result of a method of the address's file system, whose first argument is the path.

    Args:
        doing: what is tried, for messages.
        seconds: after which it fails, where the file system can be interrupted.

    Raises FileNotFoundError if there is no such object, StorageError for other failures, and as `connect`.
    """
    files, path = connect(address)
    if can_time_out(files, method):
        options["timeout"] = seconds
    with failing(address, doing):
        return getattr(files, method)(path, *arguments, **options)


def can_time_out(files: Any, method: str) -> bool:
    """Return whether a method of a file system takes `timeout`: those that fsspec makes of asynchronous ones do."""
    return bool(files.async_impl) and iscoroutinefunction(getattr(files, f"_{method}", None))


@contextmanager
def failing(address: str, doing: str) -> Iterator[None]:
    """Turn what fsspec's file systems raise into StorageError, except FileNotFoundError and our own errors."""
    try:
        yield
    except (ConvnextError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise StorageError(f"no permission to {doing} {address} ({first_line(error)}): check the credentials of this machine") from error
    except TimeoutError as error:
        raise StorageError(f"could not {doing} {address}: the storage did not answer in time; try the same command again") from error
    except Exception as error:  # drivers of storage raise their own errors, which have nothing in common
        raise StorageError(f"could not {doing} {address} ({first_line(error)}): check the address and the credentials") from error
