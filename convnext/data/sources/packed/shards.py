"""WebDataset shards: images and their labels in uncompressed tar files, on this machine or downloaded to it, read at random.

`shard_index.py` has the format. Reading by position, not as a stream, keeps a sample a function of its index alone.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from convnext.data.archives.positional import read_at
from convnext.data.deep import DeepImage
from convnext.data.download import REMOTE, local, local_or_none, shown, sibling
from convnext.data.formats import arrays
from convnext.data.images import AS_RGB, ENDINGS, CorruptImageError, Reading, read_image, read_pixels
from convnext.data.sources.packed.shard_index import ShardIndex, members, refuse_compressed, scan
from convnext.data.storage import objects
from convnext.data.storage.connection import StorageError, is_stored
from convnext.data.walk import folders_in, is_clutter
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name, counted, read_lines

_OPEN_FILES = 128  # a process may open 1,024 by default, and a large dataset has thousands of shards


class Shards:
    """The samples of some shards, in their order. `open_shards` creates it.

    It keeps three numbers and the key of each sample. Pickled for a worker, it has no open file. `skipped` lists the files that
    belong to no sample, `remarks` counts those that operating systems leave in archives (`._x.jpg`, `__MACOSX/`).
    """

    reading: Reading = AS_RGB

    def __init__(self, paths: list[Path], classes: list[str], parts: list[ShardIndex]) -> None:
        self.paths, self.classes = paths, classes
        self.skipped = [name for part in parts for name in part.skipped]
        clutter = sum(part.clutter for part in parts)
        self.remarks = [f"skipped {counted(clutter, 'file')} that operating systems leave in archives"] if clutter else []
        self._index = np.concatenate([part.samples for part in parts])  # offset, size in bytes, label
        self._keys = np.concatenate([part.keys for part in parts])
        self._ends = np.cumsum([len(part.samples) for part in parts])
        self._files: dict[int, FileIO] = {}

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": {}}

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int) -> Image.Image | DeepImage:
        """Return the image at a position. Raises CorruptImageError if it can't be read or decoded."""
        return read_image(self._content(index), self.name(index), self.reading)

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image as a uint8 (3, H, W) tensor. Raises CorruptImageError as `read` does."""
        return read_pixels(self._content(index), self.name(index), self.reading)

    def _content(self, index: int) -> bytes:
        offset, size, _ = self._index[index].tolist()
        try:
            return read_at(self._file(self._shard(index)), size, offset)
        except OSError as error:
            raise CorruptImageError(f"{self.name(index)}: {error}") from error

    def label(self, index: int) -> int:
        """Return the position in `classes` of the image's class."""
        return int(self._index[index, 2])

    def name(self, index: int) -> str:
        """Return what reports call the image: its shard and key."""
        return f"{self.paths[self._shard(index)]}/{self._keys[index].decode(errors='replace')}"

    def key(self, index: int) -> str:
        """Return the sample's key, whatever the shard: people repack shards and download them to other folders."""
        return str(self._keys[index].decode("utf-8", "surrogateescape"))

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return b"%d" % self.label(index)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _file(self, shard: int) -> FileIO:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files)))  # a file closes itself when nobody reads from it any more
            file = self._files[shard] = FileIO(self.paths[shard])
        return file


class Member(NamedTuple):
    """An image in a shard, labelled or not."""

    shard: Path
    name: str  # its path in the shard
    offset: int
    size: int  # in bytes
    address: str | None = None  # of the shard in storage, of which `shard` is the copy of one machine

    def content(self) -> bytes:
        """Return the bytes of the image's file. Raises OSError if the shard can't be read."""
        with self._here().open("rb") as file:
            return read_at(file, self.size, self.offset)

    def _here(self) -> Path:
        if self.address is None or self.shard.exists():
            return self.shard
        return _copy(self.address, self.shard.parent.name)


@cache
def _copy(address: str, version: str) -> Path:
    """Return this machine's copy of a shard in storage. Raises StorageError if it is not of that version, the name of its folder."""
    path = objects.local(address, "shards")
    if path.parent.name != version:
        raise StorageError(f"{address} changed since it was listed: start again, with --overwrite")
    return path


def find_shards(where: str) -> list[tuple[Path, str | None]]:
    """Return the shards that `where` names, as for `open_shards`, each with its address if it is in storage. Remote ones are downloaded.

    Raises UsageError as `open_shards` does.
    """
    if is_stored(where):
        return [*_from_storage(where)]
    return [(shard, None) for shard in _find(where)[0]]


def images_in(shard: Path, address: str | None = None) -> Iterator[Member]:
    """Yield the images of a shard, whose copy the file is if it has an address in storage.

    Raises ConvnextError if it is compressed, and, after the images before the damage, if it is damaged.
    """
    with shard.open("rb") as file:
        refuse_compressed(file, shard)
        has_images, lone = False, []
        for _, ending, info in members(file, shard, [], []):
            last, member = f".{ending.rpartition('.')[2]}", Member(shard, info.name, info.offset_data, info.size, address)
            if last in ENDINGS:
                has_images = True
                yield member
            elif last in arrays.ENDINGS:  # images only where there are no others, as in folders
                lone.append(member)
        yield from () if has_images else lone


def is_shards(where: str) -> bool:
    """Return whether `where` names shards: an address, a name that ends in `.tar`, or a folder of tar files without class folders."""
    path = Path(where).expanduser()
    if path.is_dir():
        return bool(_shards_in(path)) and not folders_in(path)
    return where.startswith(REMOTE) or re.search(r"\.(tar|tgz|tar\.\w+)$", where) is not None


def open_shards(where: str, classes: Sequence[str] | None = None) -> Shards:
    """Return the samples of some shards, after reading and checking all headers and labels.

    A sample has one image, and its label in `.cls`, under `label` in `.json`, or in `.txt`: a number or the class's name.

    Args:
        where: a folder of `*.tar`, one `.tar`, a pattern `train-*.tar`, or a range `train-{000000..000007}.tar`; a single shard and
            a range also as an `https://`, `http://` or `hf://datasets/owner/name/…` address, and a pattern too in storage that fsspec
            reaches (`s3://bucket/train-*.tar`), downloaded before use.
        classes: the class names in the order of the labels. Shards that name their own (in a `classes.txt` beside them, one per
            line, up to the first tab) are matched to these by name.

    Raises UsageError if there is no such shard, and ConvnextError, naming the shard and the sample, if one can't be downloaded,
    is compressed or empty, ends early or is damaged, or a sample lacks its image or a label that is one of the classes.
    """
    paths, beside = _find(where)
    own = _class_names(beside)
    given = [class_name(name) for name in classes] if classes is not None else own
    names = own or given
    with ThreadPoolExecutor(8) as pool:  # scanning mostly waits for a cold disk or a network
        parts = list(pool.map(lambda path: scan(path, names), paths))
    if given is None:
        given = [str(label) for label in range(1 + max(int(part.samples[:, 2].max()) for part in parts))]
    elif own and own != given and given != [str(label) for label in range(len(given))]:
        labels = {name: label for label, name in enumerate(given)}
        if unknown := [name for name in own if name not in labels]:
            raise ConvnextError(f"{unknown[0]} in {beside} is not one of the classes trained on{nearest(unknown[0], given)}")
        relabelled = np.array([labels[name] for name in own])
        for part in parts:
            part.samples[:, 2] = relabelled[part.samples[:, 2]]
    return Shards(paths, given, parts)


def _find(where: str) -> tuple[list[Path], Path | None]:
    """Return the shard files, downloaded if they are remote, and the file of class names beside them if there is one."""
    path = Path(where).expanduser()
    if is_stored(where):
        copies = _from_storage(where)
        return [copy for copy, _ in copies], objects.local_or_none(sibling(copies[0][1], "classes.txt"))
    if where.startswith(REMOTE):
        if not where.partition("?")[0].endswith(".tar") or "*" in where:
            raise UsageError(f"{shown(where)}: an address must name one .tar file or a range of them, as in train-{{000000..000007}}.tar")
        addresses = list(_expand(where))
        return [local(address) for address in addresses], local_or_none(sibling(addresses[0], "classes.txt"))
    if path.is_dir():
        found = _shards_in(path)
        if len(kinds := sorted({re.sub(r"\d+", "*", shard.name) for shard in found})) > 1:
            raise UsageError(f"{where} holds {' and '.join(kinds[:5])}: name one, as in {path / kinds[0]}")  # train and val, for instance
    elif path.exists() or "{" in where:
        found = [Path(name) for name in _expand(str(path))]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path))) if not is_clutter(os.path.basename(name))]
    if missing := [shard for shard in found if not shard.is_file()]:
        raise UsageError(f"no shard {missing[0]}; {where} names {len(found)}")
    if not found:
        raise UsageError(f"no shard {where}: give a folder of .tar files, one file, or a pattern such as train-{{000000..000007}}.tar")
    beside = found[0].with_name("classes.txt")
    return found, beside if beside.is_file() else None


def _from_storage(where: str) -> list[tuple[Path, str]]:
    """Return this machine's copies of shards in storage, each with its address. `where` names one, a range or a pattern."""
    named = (one.address for address in _expand(where) for _, one in objects.matching(address))
    return [(objects.local(address, "shards"), address) for address in named]


def _shards_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.tar")) if not is_clutter(path.name)]


def _expand(pattern: str) -> Iterator[str]:
    if not (match := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)):
        yield pattern
        return
    first, last = match.groups()
    if int(first) > int(last):
        raise UsageError(f"{pattern}: the range {match[0]} runs backwards")
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{pattern[: match.start()]}{number:0{len(first)}}{pattern[match.end() :]}")


def _class_names(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    names = [class_name(line.split("\t")[0].strip()) for line in read_lines(path) if line.strip()]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ConvnextError(f"{path} names the class {twice} twice: each needs a name of its own")
    return names or None
