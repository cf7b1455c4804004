"""What an archive holds, read once from its headers, and the bytes of one of its images."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convnext.data.archives.names import is_zip_name
from convnext.data.archives.plain import plain_tar
from convnext.data.archives.positional import read_at
from convnext.data.images import ENDINGS
from convnext.data.sources.packed.shard_index import members
from convnext.data.walk import is_clutter
from convnext.errors import ConvnextError
from convnext.text import printable

_MAX_MEMBERS = 10_000_000
_MAX_IMAGE = 1 << 30  # bytes of one image, unpacked: more than the largest that is decoded
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_TAR = -1  # in place of a zip's method: the content is at the offset itself
_LOCAL = struct.Struct("<4s22xHH")  # a zip's header before the content: mark, lengths of the name and of the extra field


class ArchiveIndex(NamedTuple):
    """The images of an archive, sorted by their paths."""

    path: Path  # of the file to read: for a compressed tar, its decompressed copy
    names: list[str]  # of the images, with slashes
    places: np.ndarray  # int64 (images, 5): offset, bytes in the file, bytes unpacked, method, checksum
    others: list[str]  # files with other endings
    clutter: int  # number of files that operating systems leave in archives
    repeated: int  # number of images that a later one of the same path replaces


def list_archive(path: Path) -> ArchiveIndex:
    """Return what an archive holds: a zip, or a tar, which may be compressed.

    Raises ConvnextError, naming the archive, if it is damaged, encrypted, has too many files, or a path in it has `..`.
    """
    others: list[str] = []
    clutter: list[str] = []
    if zipfile.is_zipfile(path):
        found, file = _in_zip(path, others, clutter), path
    elif is_zip_name(path.name):
        raise ConvnextError(f"{path} is cut off, or not a zip: download it again")
    else:
        file = plain_tar(path)
        found = _in_tar(file, path, others, clutter)
    rows: dict[str, tuple[int, ...]] = {}
    repeated = 0
    for name, *place in found:
        repeated += name in rows
        rows[name] = tuple(place)
        if len(rows) + len(others) > _MAX_MEMBERS:
            raise ConvnextError(f"{path} holds more than {_MAX_MEMBERS:,} files: unpack it, or write shards")
    names = sorted(rows, key=lambda name: (name.split("/")[:-1], name))  # as `walk` gives a folder's: its own before those of its folders
    return ArchiveIndex(file, names, np.array([rows[name] for name in names], np.int64).reshape(-1, 5), others, len(clutter), repeated)


def content_of(file: FileIO, place: np.ndarray) -> bytes:
    """Return the bytes of an image, given its row of `ArchiveIndex.places`. Safe in threads and after a fork.

    Raises OSError if it can't be read, or is damaged.
    """
    offset, packed, size, method, checksum = place.tolist()
    if max(packed, size) > _MAX_IMAGE:
        raise OSError(f"it has {max(packed, size):,} bytes, more than an image may have")
    if method == _TAR:
        return read_at(file, size, offset)
    if method not in (_STORED, _DEFLATED):
        raise OSError(f"it is compressed by method {method}: write the zip with the method Deflate")
    header = read_at(file, _LOCAL.size, offset)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        raise OSError("the zip is damaged: there is no header")
    _, name, extra = _LOCAL.unpack(header)
    content = read_at(file, packed, offset + _LOCAL.size + name + extra)
    if method == _DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        except zlib.error as error:
            raise OSError(f"the zip is damaged ({error})") from error
    if len(content) != size or zlib.crc32(content) != checksum:
        raise OSError("the zip is damaged: size or checksum differ")
    return content


def _in_zip(path: Path, others: list[str], clutter: list[str]) -> Iterator[tuple[str, int, int, int, int, int]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise ConvnextError(f"{path} is damaged, or not a zip ({error}): download it again") from error
    if len(infos) > _MAX_MEMBERS:
        raise ConvnextError(f"{path} holds more than {_MAX_MEMBERS:,} files: unpack it, or write shards")
    for info in infos:
        if info.is_dir() or (name := _checked(_zip_name(info), path, others, clutter)) is None:
            continue
        if info.flag_bits & 1:
            raise ConvnextError(f"{path} is encrypted: unpack it with its password, and give the folder")
        yield name, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC


def _zip_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800:  # macOS writes UTF-8 without saying so
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.filename
    return name.replace("\\", "/")


def _in_tar(file: Path, path: Path, others: list[str], clutter: list[str]) -> Iterator[tuple[str, int, int, int, int, int]]:
    skipped: list[str] = []  # with the archive's path
    with file.open("rb") as opened:
        for _, _, info in members(opened, path, skipped, clutter):
            if (name := _checked(info.name, path, others, clutter)) is not None:
                yield name, info.offset_data, info.size, info.size, _TAR, 0
    others += [name.removeprefix(f"{path}/") for name in skipped]


def _checked(name: str, path: Path, others: list[str], clutter: list[str]) -> str | None:
    """Return the path of an image without `.` and a slash at its beginning; None, noting it, if it is something else.

    Raises ConvnextError if it has `..`.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise ConvnextError(f"{path} holds {printable(name)!r}, a path that leads out of it: do not use this archive")
    if any(map(is_clutter, parts)):
        clutter.append(name)
    elif os.path.splitext(parts[-1])[1].lower() in ENDINGS:
        return "/".join(parts)
    else:
        others.append("/".join(parts))
    return None
