"""WebDataset shards: images and their labels in uncompressed tar files, on this machine or fetched to it, read at random.

Format: https://github.com/webdataset/webdataset. Files that follow one another and share their path up to the first dot of
the base name are one sample. Reading by position, not as a stream, keeps a sample a function of its index alone.
"""

import glob
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.download import REMOTE, local, local_or_none, shown, sibling
from convnext.data.images import ENDINGS, CorruptImageError, read_image, read_pixels
from convnext.data.walk import folders_in, is_clutter
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name, counted, read_lines

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd files begin
_MOST_CLASSES = 1_000_000  # where nothing says how many: a larger number is an identifier that someone took for a label
_OPEN_FILES = 128  # a process may have 1,024 by default, and a large data set has thousands of shards


class Shards:
    """The samples of some shards, in their order; made by `open_shards`.

    Holds three numbers and the key of each sample, and no open file where it is pickled for a worker. `skipped` lists the
    files that belong to no sample, `remarks` counts what systems leave in archives (`._x.jpg`, `__MACOSX/`).
    """

    def __init__(self, paths: list[Path], classes: list[str], parts: list["_Part"]) -> None:
        self.paths, self.classes = paths, classes
        self.skipped = [name for part in parts for name in part.skipped]
        clutter = sum(part.clutter for part in parts)
        self.remarks = [f"skipped {counted(clutter, 'file')} that systems leave in archives, no images"] if clutter else []
        self._index = np.concatenate([part.samples for part in parts])  # offset, size in bytes, label
        self._keys = np.concatenate([part.keys for part in parts])
        self._ends = np.cumsum([len(part.samples) for part in parts])
        self._files: dict[int, FileIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int) -> Image.Image | DeepImage:
        """The image of that position. Raises CorruptImageError if it can't be read or decoded."""
        return read_image(self._content(index), self.name(index))

    def pixels(self, index: int) -> Tensor | DeepImage:
        """The same as a uint8 (3, H, W) tensor. Raises CorruptImageError likewise."""
        return read_pixels(self._content(index), self.name(index))

    def _content(self, index: int) -> bytes:
        offset, size, _ = self._index[index].tolist()
        try:
            return os.pread(self._file(self._shard(index)).fileno(), size, offset)  # unlike seek, safe after a fork
        except OSError as error:
            raise CorruptImageError(f"{self.name(index)}: {error}") from error

    def label(self, index: int) -> int:
        """The label of that position."""
        return int(self._index[index, 2])

    def name(self, index: int) -> str:
        """What to call that position in a report: its shard and key."""
        return f"{self.paths[self._shard(index)]}/{self._keys[index].decode(errors='replace')}"

    def key(self, index: int) -> str:
        """Its key, whatever the shard: shards are cut anew, and fetched to other places."""
        return str(self._keys[index].decode("utf-8", "surrogateescape"))

    def label_bytes(self, index: int) -> bytes:
        """Its label, to be compared."""
        return b"%d" % self.label(index)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _file(self, shard: int) -> FileIO:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files)))  # closes itself once nobody reads from it
            file = self._files[shard] = FileIO(self.paths[shard])
        return file


class _Part(NamedTuple):
    """What one shard holds."""

    samples: np.ndarray  # offset, size in bytes and label of each
    keys: np.ndarray
    skipped: list[str]  # the files that belong to no sample
    clutter: int  # how many files besides are what systems leave


class Member(NamedTuple):
    """An image in a shard, labelled or not."""

    shard: Path
    name: str  # its path in the shard
    offset: int
    size: int  # in bytes

    def content(self) -> bytes:
        """The image's file. Raises OSError if the shard can't be read."""
        with self.shard.open("rb") as file:
            return os.pread(file.fileno(), self.size, self.offset)


def find_shards(where: str) -> list[Path]:
    """The shards that `where` names as for `open_shards`, fetched where they are remote. Raises UsageError likewise."""
    return _find(where)[0]


def images_in(shard: Path) -> Iterator[Member]:
    """The images of a shard. Raises ConvnextError where it is compressed, and, after those before, where it is damaged."""
    with shard.open("rb") as file:
        _refuse_compressed(file, shard)
        for _, ending, info in _members(file, shard, [], []):
            if f".{ending.rpartition('.')[2]}" in ENDINGS:
                yield Member(shard, info.name, info.offset_data, info.size)


def is_shards(where: str) -> bool:
    """Whether `where` is for `open_shards`: an address, a name that ends in `.tar`, or a folder of such without class folders."""
    path = Path(where).expanduser()
    if path.is_dir():
        return bool(_shards_in(path)) and not folders_in(path)
    return where.startswith(REMOTE) or re.search(r"\.(tar|tgz|tar\.\w+)$", where) is not None


def open_shards(where: str, classes: Sequence[str] | None = None) -> Shards:
    """The samples of some shards, all of whose headers and labels are read and checked here, once.

    A sample has one image, and its label in `.cls`, under `label` in `.json`, or in `.txt`: a number or the class's name.

    Args:
        where: a folder of `*.tar`, one `.tar`, a pattern `train-*.tar`, or a range `train-{000000..000007}.tar`; the range and
            the one also as an `https://`, `http://` or `hf://datasets/owner/name/…` address, fetched before use.
        classes: the class names in the order of the labels. Shards that name their own (in a `classes.txt` beside them, one a
            line, up to the first tab) are matched to these by name.

    Raises UsageError if there is no such shard, and ConvnextError, naming the shard and the sample, if one can't be fetched,
    is compressed or empty, ends early or is damaged, or a sample lacks its image or a label that is one of the classes.
    """
    paths, beside = _find(where)
    own = _class_names(beside)
    given = [class_name(name) for name in classes] if classes is not None else own
    names = own or given
    with ThreadPoolExecutor(8) as pool:  # from a cold disk or a network, scanning is waiting
        parts = list(pool.map(lambda path: _scan(path, names), paths))
    if given is None:
        given = [str(label) for label in range(1 + max(int(part.samples[:, 2].max()) for part in parts))]
    elif own and own != given and given != [str(label) for label in range(len(given))]:
        places = {name: label for label, name in enumerate(given)}
        if unknown := [name for name in own if name not in places]:
            raise ConvnextError(f"{unknown[0]} in {beside} is none of the classes trained on{nearest(unknown[0], given)}")
        labels = np.array([places[name] for name in own])
        for part in parts:
            part.samples[:, 2] = labels[part.samples[:, 2]]
    return Shards(paths, given, parts)


def _find(where: str) -> tuple[list[Path], Path | None]:
    """The shard files, fetched where they are remote, and the file of class names beside them if there is one."""
    path = Path(where).expanduser()
    if where.startswith(REMOTE):
        if not where.partition("?")[0].endswith(".tar") or "*" in where:
            raise UsageError(f"{shown(where)}: an address must name one .tar file or a range of them, as in train-{{000000..000007}}.tar")
        addresses = list(_expand(where))
        return [local(address) for address in addresses], local_or_none(sibling(addresses[0], "classes.txt"))
    if path.is_dir():
        found = _shards_in(path)
        if len(kinds := sorted({re.sub(r"\d+", "*", shard.name) for shard in found})) > 1:
            raise UsageError(f"{where} holds {' and '.join(kinds[:5])}: say which, as in {path / kinds[0]}")  # train and val, say
    elif path.exists() or "{" in where:
        found = [Path(name) for name in _expand(str(path))]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path))) if not is_clutter(os.path.basename(name))]
    if missing := [shard for shard in found if not shard.is_file()]:
        raise UsageError(f"no shard {missing[0]}; {where} names {len(found)}")
    if not found:
        raise UsageError(f"no shard {where}: give a folder of .tar files, one, or a pattern such as train-{{000000..000007}}.tar")
    beside = found[0].with_name("classes.txt")
    return found, beside if beside.is_file() else None


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


def _scan(path: Path, names: list[str] | None) -> _Part:
    rows: list[tuple[int, int, int]] = []
    keys: list[bytes] = []
    skipped: list[str] = []
    clutter: list[str] = []
    places = {name: label for label, name in enumerate(names or [])}
    with path.open("rb") as file:
        _refuse_compressed(file, path)
        for key, members in itertools.groupby(_members(file, path, skipped, clutter), lambda member: member[0]):
            try:
                rows.append(_sample(file, [(ending, info) for _, ending, info in members], places, names is not None))
            except ValueError as error:
                raise ConvnextError(f"sample {key!r} of {path} {error}: mend or leave out that sample and write the shard again") from error
            keys.append(key.encode("utf-8", "surrogateescape"))
    if not rows:
        raise ConvnextError(f"{path} holds no samples: remove it, or write it again with an image and a label for each sample")
    return _Part(np.array(rows, np.int64), np.array(keys), skipped, len(clutter))


def _refuse_compressed(file: BinaryIO, path: Path) -> None:
    if file.read(6).startswith(_COMPRESSED):
        raise ConvnextError(f"{path} is compressed, and can't be read at random: decompress it (images hardly shrink anyway)")


def _members(file: BinaryIO, path: Path, skipped: list[str], clutter: list[str]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, ending and place of each file of a shard. Raises ConvnextError if the shard does not go on to its end mark."""
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
            # tarfile takes any header that it can't read for the end; only a block of zeros is one.
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
            reason = f"goes on behind its end mark, after {last} (tar files can't be joined with cat)"
    if reason:
        raise ConvnextError(f"{path} {reason}: remove it, and fetch or write it again")


def _sample(file: BinaryIO, members: list[tuple[str, tarfile.TarInfo]], places: dict[str, int], closed: bool) -> tuple[int, int, int]:
    """Offset, size and label of a sample. Raises ValueError with what is wrong with it, as a predicate."""
    has = ", ".join(f".{ending}" for ending, _ in members)
    images = [info for ending, info in members if f".{ending}" in ENDINGS]
    if len(images) != 1:
        raise ValueError(f"has {'two images' if images else 'no image'} (it has {has}; its files must follow one another)")
    text = _label_text(file, dict(members))
    if text is None:
        raise ValueError(f"has no label in .cls, .json or .txt (it has {has}; its files must follow one another)")
    try:
        label = int(text)
    except ValueError:
        text = class_name(text)
        if text not in places:
            known = f" nor one of the {len(places)} classes{nearest(text, places)}" if places else ", and there is no classes.txt"
            raise ValueError(f"has the label {text[:40]!r}, which is not a number{known}") from None
        label = places[text]
    count = len(places) if closed else _MOST_CLASSES
    if not 0 <= label < count:
        raise ValueError(f"has the label {label}, which is not one of 0 to {count - 1}")
    return images[0].offset_data, images[0].size, label


def _label_text(file: BinaryIO, members: dict[str, tarfile.TarInfo]) -> str | None:
    for ending in ("cls", "json", "txt"):
        if (info := members.get(ending)) is None:
            continue
        content = os.pread(file.fileno(), info.size, info.offset_data)
        if ending != "json":
            return content.decode("utf-8-sig", errors="replace").strip()
        try:
            table = json.loads(content)
        except ValueError as error:
            raise ValueError(f"has a .json that can't be read ({error})") from error
        if isinstance(table, dict) and "label" in table:
            return str(table["label"])
    return None
