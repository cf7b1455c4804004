"""Compressed tar files, decompressed once into the cache: a compressed one can't be read at random."""

import bz2
import gzip
import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path

from convnext.data.download import cache_folder
from convnext.data.images import ENDINGS
from convnext.data.walk import is_clutter
from convnext.errors import ConvnextError, writing

_OPENERS: dict[bytes, Callable[[Path], BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}  # by first bytes
_PIECE = 1 << 20  # bytes
_FREE, _RATIO = 1 << 30, 50  # a tar may have the first number of bytes, and the second for each byte compressed: images hardly shrink
_LABELS = ("cls", "json", "txt")  # endings of the label of a sample in a shard
_LOOKED_AT = 500  # files at an archive's beginning, by which shards are recognised


def plain_tar(path: Path) -> Path:
    """Return the tar itself, or its decompressed copy in the cache, which is written if it is not there yet.

    Raises ConvnextError if it is neither a tar nor a compressed one, is damaged, or unpacks to far more than images do.
    """
    with path.open("rb") as file:
        first = file.read(6)
    opener = next((opener for mark, opener in _OPENERS.items() if first.startswith(mark)), None)
    if opener is None:
        return path
    state = path.stat()
    digest = hashlib.sha256(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode("utf-8", "surrogateescape")).hexdigest()
    copy = cache_folder() / "archives" / digest[:16] / f"{path.name.split('.')[0] or 'archive'}.tar"
    if not copy.exists():
        part = copy.with_name(f".{copy.name}.{os.getpid()}")
        with writing(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                _decompress(path, opener, part, _FREE + _RATIO * state.st_size)
                part.replace(copy)
            finally:
                part.unlink(missing_ok=True)
    return copy


def _decompress(path: Path, opener: Callable[[Path], BufferedIOBase], target: Path, limit: int) -> None:
    written = 0
    with target.open("wb") as output, opener(path) as file:
        while True:
            try:
                piece = file.read(_PIECE)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ConvnextError(f"{path} is damaged or ends early ({error}): download it again") from error
            if not piece:
                return
            written += len(piece)
            if written > limit:
                raise ConvnextError(f"{path} unpacks to more than {limit:,} bytes, far more than images do: do not use this archive")
            output.write(piece)


def is_shard(path: Path) -> bool:
    """Return whether a tar holds samples of WebDataset, an image and its label each, and not images in folders.

    A file that can't be read is taken for a shard: opening it says what is wrong.
    """
    endings: dict[str, set[str]] = {}
    in_folders = False
    try:
        with tarfile.open(path, "r:*") as archive:
            for count, info in enumerate(archive):
                if count >= _LOOKED_AT:
                    break
                parts = [part for part in info.name.split("/") if part not in ("", ".")]
                if not info.isreg() or any(map(is_clutter, parts)):
                    continue
                stem, _, ending = parts[-1].lower().partition(".")
                endings.setdefault("/".join([*parts[:-1], stem]), set()).add(ending)
                in_folders |= len(parts) > 1 and f".{ending.rpartition('.')[2]}" in ENDINGS
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError):
        return True
    return not in_folders or any(found & set(_LABELS) for found in endings.values() if any(f".{one}" in ENDINGS for one in found))
