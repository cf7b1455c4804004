"""What one shard holds: the tar file's members grouped into samples, read once and checked.

Format: https://github.com/webdataset/webdataset. Consecutive files that share their path up to the first dot of the base name are one
sample.
"""

import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from convnext.data.archives.positional import read_at
from convnext.data.formats import arrays
from convnext.data.images import ENDINGS
from convnext.data.walk import is_clutter
from convnext.errors import ConvnextError, nearest
from convnext.text import class_name

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # the first bytes of gzip, bzip2, xz and zstd files
_MAX_CLASSES = 1_000_000  # if nothing says how many: a larger number is an identifier, taken for a label by mistake


class ShardIndex(NamedTuple):
    """The samples of one shard."""

    samples: np.ndarray  # int64 (samples, 3): offset and size in bytes of the image, label
    keys: np.ndarray
    skipped: list[str]  # files that belong to no sample
    clutter: int  # number of other files, which operating systems leave in archives


def scan(path: Path, names: list[str] | None) -> ShardIndex:
    """Return the samples of a shard, read from its headers and labels.

    Args:
        path: the tar file.
        names: the class names in the order of the labels; None if labels are numbers up to any.

    Raises ConvnextError, naming shard and sample, if the shard is compressed, empty, damaged or cut off, or a sample is invalid.
    """
    rows: list[tuple[int, int, int]] = []
    keys: list[bytes] = []
    skipped: list[str] = []
    clutter: list[str] = []
    labels = {name: label for label, name in enumerate(names or [])}
    with path.open("rb") as file:
        refuse_compressed(file, path)
        for key, files in itertools.groupby(members(file, path, skipped, clutter), lambda member: member[0]):
            try:
                rows.append(_sample(file, [(ending, info) for _, ending, info in files], labels, names is not None))
            except ValueError as error:
                raise ConvnextError(f"sample {key!r} of {path} {error}: correct or remove that sample and write the shard again") from error
            keys.append(key.encode("utf-8", "surrogateescape"))
    if not rows:
        raise ConvnextError(f"{path} holds no samples: remove it, or write it again with an image and a label for each sample")
    return ShardIndex(np.array(rows, np.int64), np.array(keys), skipped, len(clutter))


def refuse_compressed(file: BinaryIO, path: Path) -> None:
    """Raise ConvnextError if an opened shard is compressed."""
    if file.read(6).startswith(_COMPRESSED):
        raise ConvnextError(f"{path} is compressed, and can't be read at random: decompress it (images hardly shrink anyway)")


def members(file: BinaryIO, path: Path, skipped: list[str], clutter: list[str]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, ending and header of each file of a shard; add the names of others to `skipped` and `clutter`.

    Raises ConvnextError if the shard ends before its end mark or is damaged.
    """
    size, last, reason = os.fstat(file.fileno()).st_size, "its beginning", ""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as shard:
            for info in shard:
                last = repr(info.name)
                if info.offset_data + info.size > size:
                    reason = f"has {size - info.offset_data} of the {info.size} bytes of its file {last}"
                    break
                folder, slash, base = info.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if any(is_clutter(part) for part in info.name.split("/") if part not in ("", ".", "..")):
                    clutter.append(info.name)
                elif info.isreg() and stem and dot:
                    yield folder + slash + stem, ending.lower(), info
                elif not info.isdir():
                    skipped.append(f"{path}/{info.name}")
            # tarfile stops at any header that it can't read, as if it were the end; only a block of zeros is the end.
            file.seek(shard.offset)
    except tarfile.TarError as error:
        reason = f"is damaged or ends early after {last} ({error})"
    if not reason:
        mark = file.read(tarfile.BLOCKSIZE)
        if len(mark) < tarfile.BLOCKSIZE:
            reason = f"ends early, at byte {size} after {last}, without an end mark"
        elif mark.strip(b"\0"):
            reason = f"is damaged after {last}"
        elif file.read(1 << 20).strip(b"\0"):
            reason = f"continues after its end mark, which follows {last} (cat can't join tar files)"
    if reason:
        raise ConvnextError(f"{path} {reason}: remove it, and download or write it again")


def _sample(file: BinaryIO, files: list[tuple[str, tarfile.TarInfo]], labels: Mapping[str, int], is_complete: bool) -> tuple[int, int, int]:
    """Return offset, size and label of a sample. Raises ValueError that says what is wrong with it, as a predicate.

    Args:
        file: the opened shard.
        files: ending and header of each file of the sample.
        labels: by class name.
        is_complete: whether `labels` has all classes.
    """
    has = ", ".join(f".{ending}" for ending, _ in files)
    images = [info for ending, info in files if f".{ending}" in ENDINGS]
    images = images or [info for ending, info in files if f".{ending}" in arrays.ENDINGS]
    if len(images) != 1:
        raise ValueError(f"has {'two images' if images else 'no image'} (it has {has}; its files must follow one another)")
    text = _label_text(file, dict(files))
    if text is None:
        raise ValueError(f"has no label in .cls, .json or .txt (it has {has}; its files must follow one another)")
    try:
        label = int(text)
    except ValueError:
        text = class_name(text)
        if text not in labels:
            known = f" nor one of the {len(labels)} classes{nearest(text, labels)}" if labels else ", and there is no classes.txt"
            raise ValueError(f"has the label {text[:40]!r}, which is not a number{known}") from None
        label = labels[text]
    count = len(labels) if is_complete else _MAX_CLASSES
    if not 0 <= label < count:
        raise ValueError(f"has the label {label}, which is not one of 0 to {count - 1}")
    return images[0].offset_data, images[0].size, label


def _label_text(file: BinaryIO, files: Mapping[str, tarfile.TarInfo]) -> str | None:
    for ending in ("cls", "json", "txt"):
        if (info := files.get(ending)) is None:
            continue
        content = read_at(file, info.size, info.offset_data)
        if ending != "json":
            return content.decode("utf-8-sig", errors="replace").strip()
        try:
            table = json.loads(content)
        except ValueError as error:
            raise ValueError(f"has a .json that can't be read ({error})") from error
        if isinstance(table, dict) and "label" in table:
            return str(table["label"])
    return None
