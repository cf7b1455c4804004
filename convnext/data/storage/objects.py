"""List, read and download objects in storage.

Downloads lie in the cache, keyed by the address and the version of the object: its ETag, or else its time.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from convnext.data.download import cache_folder, is_file_name, locked
from convnext.data.storage.connection import PIECE, StorageError, call, connect
from convnext.data.walk import is_clutter
from convnext.errors import CorruptImageError, UsageError, writing

_LISTING = 600  # seconds: a list of a million objects takes minutes
_MAX_IMAGE = 1 << 30  # bytes of one image's file, as in archives
_TAGS = ("ETag", "etag", "md5Hash", "checksum")  # what drivers call the checksum of an object,
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")  # and the time of its last change


class StoredObject(NamedTuple):
    """An object, as it was when it was listed."""

    address: str
    size: int  # bytes
    version: str  # differs when the content does: a digest of ETag or time, and size
    changed: int | None  # when, in nanoseconds; None where the storage does not say

    def content(self) -> bytes:
        """Return the bytes of an image's file.

        Raises CorruptImageError if it is too large, or is not there any more, StorageError if the storage fails.
        """
        if self.size > _MAX_IMAGE:
            raise CorruptImageError(f"{self.address}: it has {self.size:,} bytes, more than an image may have")
        try:
            return b"".join(_pieces(self, 0))
        except FileNotFoundError as error:
            raise CorruptImageError(f"{self.address}: it was deleted after it was listed") from error


def find(address: str) -> StoredObject | None:
    """Return the object of that address; None if there is none, or a folder. Raises UsageError and StorageError as `connect`."""
    files, path = connect(address)
    files.invalidate_cache(path)  # lists that the driver keeps would hide a new version
    try:
        info = call(address, "info")
    except FileNotFoundError:
        return None
    return _stored(address, info) if info["type"] == "file" else None


def matching(where: str) -> list[tuple[str, StoredObject]]:
    """Return the objects that `where` names, an object, a folder or a pattern, each with its path below the last folder without a wildcard.

    They are sorted as the files of a folder: its own before those of its folders. Files of operating systems are skipped.

    Raises UsageError if there is none.
    """
    if (one := find(where)) is not None:
        return [(where.rpartition("/")[2], one)]
    root, pattern = _root_of(where)
    files, top = connect(root)
    files.invalidate_cache(top)
    try:
        if pattern:
            infos = call(where, "glob", detail=True, doing="list", seconds=_LISTING)
        else:
            infos = call(root, "find", detail=True, doing="list", seconds=_LISTING)
    except FileNotFoundError:
        infos = {}
    found = []
    for path, info in infos.items():
        below = str(path).removeprefix(top).strip("/")
        if info["type"] == "file" and below and not any(map(is_clutter, below.split("/"))):
            found.append((below, _stored(f"{root.rstrip('/')}/{below}", info)))
    if not found:
        raise UsageError(f"no object {'matches' if pattern else 'or folder'} {where}")
    return sorted(found, key=lambda one: (one[0].split("/")[:-1], one[0]))


def local(address: str, kind: str = "objects") -> Path:
    """Return the file on this machine of an object. It is downloaded unless this version of it is in the cache.

    Its time is that of the object, and the name of its folder is a digest of address and version. The transfer is whole or not at all,
    resumed if it was cut off, and done by one process while others wait.

    Args:
        address: of the object.
        kind: the folder of the cache to put it in.

    Raises UsageError if there is no such object, StorageError if it can't be downloaded, ConvnextError if it can't be written.
    """
    path = local_or_none(address, kind)
    if path is None:
        raise UsageError(f"no object {address}")
    return path


def local_or_none(address: str, kind: str = "objects") -> Path | None:
    """Return what `local` does, None if there is no such object."""
    found = find(address)
    if found is None:
        return None
    path = place(kind, f"{address}\0{found.version}", address.rpartition("/")[2])
    if path.exists():
        return path
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock"), part):
            if not path.exists():
                _download(found, part)
                if found.changed is not None:
                    os.utime(part, ns=(found.changed, found.changed))
                part.replace(path)
    return path


def place(kind: str, key: str, name: str) -> Path:
    """Return a path in the cache: in a folder named by a digest of the key, with the name as far as file systems take it."""
    if not is_file_name(name):
        name = f"{_digest(name)}{Path(name).suffix}"
    return cache_folder() / kind / _digest(key) / name


def _root_of(where: str) -> tuple[str, str]:
    """Return the folder of an address up to the first part with a wildcard, and the rest; "" if there is no wildcard."""
    parts = where.split("/")
    first = next((index for index, part in enumerate(parts) if index > 2 and glob.has_magic(part)), len(parts))  # behind scheme://bucket
    return "/".join(parts[:first]), "/".join(parts[first:])


def _stored(address: str, info: Mapping[str, object]) -> StoredObject:
    changed = next((time for name in _TIMES if (time := _nanoseconds(info.get(name))) is not None), None)
    tag = next((str(info[name]).strip('"') for name in _TAGS if info.get(name)), str(changed))
    return StoredObject(address, int(str(info["size"])), _digest(f"{tag} {info['size']}"), changed)


def _nanoseconds(time: object) -> int | None:
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            return None
    if isinstance(time, datetime):
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return int(time * 1e9) if isinstance(time, int | float) else None


def _download(found: StoredObject, part: Path) -> None:
    try:
        with part.open("ab") as file:
            if file.tell() > found.size:
                file.truncate(0)
            for piece in _pieces(found, file.tell()):
                file.write(piece)
    except FileNotFoundError as error:
        raise UsageError(f"no object {found.address}: it was deleted while it was downloaded") from error
    now = find(found.address)
    if now is None or now.version != found.version:
        part.unlink()
        raise StorageError(f"{found.address} changed while it was downloaded: try the same command again")


def _pieces(found: StoredObject, start: int) -> Iterator[bytes]:
    """Yield the bytes of an object from `start` on. Raises FileNotFoundError, and StorageError, also if it is shorter now."""
    while start < found.size:
        piece = call(found.address, "cat_file", start=start, end=min(start + PIECE, found.size))
        if not piece:
            raise StorageError(f"{found.address} has {start:,} bytes, not {found.size:,}: it changed since it was listed")
        yield piece
        start += len(piece)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
