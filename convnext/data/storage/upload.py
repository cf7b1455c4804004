"""Write a file into storage, whole or not at all."""

from contextlib import suppress
from pathlib import Path

from convnext.data.storage.connection import StorageError, call, can_time_out, connect, failing, scheme_of
from convnext.data.storage.objects import StoredObject, find

_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "oss", "oci", "tos"}  # stores where an object appears when its last byte is there
_SLOWEST = 100_000  # bytes in a second


def upload(path: Path, address: str) -> StoredObject:
    """Write a file to an address, which a reader sees complete or not at all. Returns the new object.

    Raises StorageError if that fails.
    """
    seconds = 60 + path.stat().st_size / _SLOWEST
    try:
        if scheme_of(address) in _WHOLE:
            _put(path, address, seconds)
        else:
            _put_and_rename(path, address, seconds)
    except FileNotFoundError as error:
        raise StorageError(f"could not write {address}: there is no such bucket or folder") from error
    found = find(address)
    if found is None or found.size != path.stat().st_size:
        raise StorageError(f"{address} was written by someone else at the same time: try the same command again")
    return found


def _put(path: Path, address: str, seconds: float) -> None:
    files, target = connect(address)
    limit = {"timeout": seconds} if can_time_out(files, "put_file") else {}
    # Unlike the other methods, `put_file` has the path on this machine first.
    with failing(address, "write"):
        files.put_file(str(path), target, **limit)


def _put_and_rename(path: Path, address: str, seconds: float) -> None:
    folder, _, name = address.rpartition("/")
    part = f"{folder}/.{name}.part"
    call(folder, "makedirs", exist_ok=True, doing="make the folder")
    try:
        _put(path, part, seconds)
        call(part, "mv", connect(address)[1], doing="write", seconds=seconds)
    except BaseException:
        with suppress(Exception):
            call(part, "rm_file")
        raise
