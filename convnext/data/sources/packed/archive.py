"""Archives of class folders: `photos.zip`, `photos.tar` or `photos.tar.gz`, or a folder within one: `photos.zip/train`."""

from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from convnext.data.archives.members import ArchiveIndex, content_of, list_archive
from convnext.data.archives.names import archive_in, is_zip_name
from convnext.data.archives.plain import is_shard
from convnext.data.deep import DeepImage
from convnext.data.download import REMOTE
from convnext.data.images import AS_RGB, CorruptImageError, Reading, read_image, read_pixels
from convnext.data.sources.folder import labels_by_folder, part_kind, refuse_parts
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name, counted


class ArchiveFolder:
    """The images in the class folders of an archive, with the labels, order and keys that the unpacked folder would have.

    A single folder at the top is passed over. Pickled for a worker, the source has no open file.

    Args:
        where: the name: an archive, or a folder within one.
        classes: the class names in the order of their labels; by default the names of the folders, sorted.

    Raises UsageError if there is no such archive or folder, and ConvnextError for an archive that can't be used, or as `ImageFolder` does.
    """

    reading: Reading = AS_RGB

    def __init__(self, where: str, classes: Sequence[str] | None = None) -> None:
        self.path, inner = _archive(where)
        index = list_archive(self.path)
        self.below = _below(index, inner, where)
        names = [name.removeprefix(self.below) for name in index.names if name.startswith(self.below)]
        folders = {folder: class_name(folder) for name in names if "/" in name for folder in (name.partition("/")[0],)}
        if not folders:
            raise ConvnextError(f"{where} has no class folders: put the images of each class into a folder named after it")
        known = sorted(set(folders.values())) if classes is None else [class_name(name) for name in classes]
        if classes is None or not set(folders.values()) <= set(known):
            refuse_parts(self.path / self.below, folders)
        self.classes = known
        self.paths, self.labels, remarks = labels_by_folder(names, folders, known, self.path / self.below, "/", classes is not None)
        self.skipped = [name.removeprefix(self.below) for name in index.others if name.startswith(self.below)]
        self.remarks = _remarks(index) + remarks
        rows = {name: row for row, name in enumerate(index.names)}
        self._file_path, self._places = index.path, index.places[[rows[self.below + path] for path in self.paths]]
        self._file: FileIO | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_file": None}

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image | DeepImage:
        """Return the image at a position. Raises CorruptImageError if it can't be read or decoded."""
        return read_image(self._content(index), self.name(index), self.reading)

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image as a uint8 (3, H, W) tensor. Raises CorruptImageError as `read` does."""
        return read_pixels(self._content(index), self.name(index), self.reading)

    def _content(self, index: int) -> bytes:
        try:
            if self._file is None:
                self._file = FileIO(self._file_path)
            return content_of(self._file, self._places[index])
        except OSError as error:
            raise CorruptImageError(f"{self.name(index)}: {error}") from error

    def label(self, index: int) -> int:
        """Return the position in `classes` of the image's class."""
        return self.labels[index]

    def name(self, index: int) -> str:
        """Return what reports call the image: its path, the archive's included."""
        return f"{self.path}/{self.below}{self.paths[index]}"

    def key(self, index: int) -> str:
        """Return the image's path within the dataset."""
        return self.paths[index]

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return b"%d" % self.labels[index]


class ArchiveImage(NamedTuple):
    """An image in an archive, labelled or not."""

    archive: Path  # as it was named
    file: Path  # that is read: the archive, or its decompressed copy
    place: np.ndarray  # where, see `ArchiveIndex`

    def content(self) -> bytes:
        """Return the bytes of the image's file. Raises OSError if they can't be read."""
        with FileIO(self.file) as opened:
            return content_of(opened, self.place)


def is_archive(where: str) -> bool:
    """Return whether a name is that of an archive of folders, or of a folder within one. A tar of WebDataset's samples is not one."""
    found = archive_in(where)
    if found is None:
        return is_zip_name(where) and not where.startswith(REMOTE)
    return is_zip_name(found[0].name) or bool(found[1]) or not is_shard(found[0])


def images_in_archive(where: str) -> Iterator[tuple[str, str, ArchiveImage]]:
    """Yield the images that an archive, or a folder within it, has at any depth: name, path below that folder, and the image."""
    path, inner = _archive(where)
    index = list_archive(path)
    below = _below(index, inner, where) if inner else ""
    for name, place in zip(index.names, index.places, strict=True):
        if name.startswith(below):
            yield f"{path}/{name}", name.removeprefix(below), ArchiveImage(path, index.path, place)


def archive_parts(where: str) -> tuple[str, str] | None:
    """Return the names of the training and validation part of an archive that has folders for them; None for other archives."""
    path, inner = _archive(where)
    index = list_archive(path)
    below = _below(index, inner, where)
    folders = sorted({name.removeprefix(below).partition("/")[0] for name in index.names if "/" in name.removeprefix(below)}, reverse=True)
    kinds = {kind: f"{path}/{below}{name}" for name in folders if (kind := part_kind(name))}
    val = kinds.get("val", kinds.get("test"))
    return (kinds["train"], val) if "train" in kinds and val is not None else None


def _archive(where: str) -> tuple[Path, str]:
    found = archive_in(where)
    if found is None:
        raise UsageError(f"no archive {where}")
    return found


def _below(index: ArchiveIndex, inner: str, where: str) -> str:
    """Return the folder, "" or with a slash at its end, whose folders are the classes. Raises UsageError if it is not in the archive."""
    top = _without_single_folders(index, "")
    if not inner:
        return top
    for below in (f"{inner}/", f"{top}{inner}/"):
        if any(name.startswith(below) for name in index.names):
            return _without_single_folders(index, below)
    folders = {name.removeprefix(top).partition("/")[0] for name in index.names if "/" in name.removeprefix(top)}
    raise UsageError(f"{where}: the archive has no images in {inner}{nearest(inner, folders)}")


def _without_single_folders(index: ArchiveIndex, below: str) -> str:
    """Return the first folder from `below` down that is not alone in its own, holds images itself, or is a part as `train`."""
    while True:
        inside = [name[len(below) :] for name in index.names if name.startswith(below)]
        first = inside[0].partition("/")[0] if inside else ""
        if not first or part_kind(first) or not all(name.startswith(f"{first}/") and name.count("/") > 1 for name in inside):
            return below
        below += f"{first}/"


def _remarks(index: ArchiveIndex) -> list[str]:
    found = [f"skipped {counted(index.clutter, 'file')} that operating systems leave in archives"] if index.clutter else []
    return found + ([f"{counted(index.repeated, 'image')} of the archive: a later one of the same path counts"] if index.repeated else [])
