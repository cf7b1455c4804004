"""Find the images to predict: named one by one, in folders, by patterns, in a list on standard input, in shards, or in videos."""

import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from convnext.data.deep import DeepImage
from convnext.data.formats.arrays import ENDINGS as ARRAYS
from convnext.data.images import AS_RGB, ENDINGS, CorruptImageError, Reading, read_image
from convnext.data.sources.packed.archive import ArchiveImage, images_in_archive, is_archive
from convnext.data.sources.packed.embedded import is_embedded, open_embedded
from convnext.data.sources.packed.shards import Member, find_shards, images_in, is_shards
from convnext.data.sources.packed.video import ENDINGS as VIDEO_ENDINGS
from convnext.data.sources.packed.video import Frame, list_frames
from convnext.data.sources.table import images_of, is_table
from convnext.data.storage.connection import is_stored
from convnext.data.storage.objects import StoredObject
from convnext.data.storage.objects import matching as stored_objects
from convnext.data.walk import matching, walk
from convnext.errors import ConvnextError, UsageError, nearest_path

STANDARD_INPUT = "-"
_MAX_NAME = 255  # bytes of a name on all current file systems; in a shard it may be longer


@dataclass(frozen=True, slots=True)
class Item:
    """An image to predict."""

    name: str  # in the outputs: its path, or the path of its shard or video and its own within that
    below: str  # its path below the source that was named; files made from it are named after this
    where: Path | Member | ArchiveImage | Frame | StoredObject | None  # None for a part of a shard or video that can't be read
    fault: str = ""  # why it can't

    def file(self) -> Path | None:
        """Return the file on the disk that has the image: its own, or its shard, archive or video; None for an object in storage."""
        if isinstance(self.where, StoredObject):
            return None
        if isinstance(self.where, Frame):
            return self.where.video.path
        if isinstance(self.where, ArchiveImage):
            return self.where.archive
        return self.where.shard if isinstance(self.where, Member) else self.where

    def read(self, how: Reading = AS_RGB) -> Image.Image | DeepImage:
        """Return the image, upright, opened as `how` says. Raises CorruptImageError if it can't be read."""
        if self.where is None:
            raise CorruptImageError(self.fault)
        if isinstance(self.where, Path):
            return read_image(self.where, how=how)
        if isinstance(self.where, Frame):
            return self.where.read(self.name, how)
        try:
            content = self.where.content()
        except OSError as error:
            raise CorruptImageError(f"{self.name}: {error}") from error
        return read_image(content, self.name, how)

    def label(self) -> dict[str, object]:
        """Return what JSON calls the image: its name, and of a frame of a video also its time in seconds."""
        return {"image": self.name} | ({"time": self.where.seconds} if isinstance(self.where, Frame) else {})


def find_items(sources: Sequence[str], fps: float | None = None) -> list[Item]:
    """Return all images of the sources in their order, each once.

    Args:
        sources: images; folders, with all images below them, sorted; shell patterns such as `photos/**/*.jpg`; shards, in the notation
            of `convnext.data.sources.packed.shards`; each of these also in storage, as `s3://bucket/photos`; archives, or tables, whose
            images need no labels; or `-`, for paths on standard input, one per line. A path on standard input that can't be read does
            not stop the others. Videos stand for their frames; of a folder, or by a pattern without an ending, only images are taken.
        fps: how many frames of each second of a video to take; by default all.

    Raises UsageError for an invalid source, and ConvnextError for a folder or list without images.
    """
    items: dict[str, Item] = {}
    for source in sources:
        for item in _listed() if source == STANDARD_INPUT else _expand(source):
            for one in _frames(item, fps) if isinstance(item.where, Path) and _is_video(item.where) else [item]:
                items.setdefault(one.name, one)
    return list(items.values())


def find_images(sources: Sequence[str]) -> Iterator[Path]:
    """Yield files as named, and for folders all images below them as `walk` finds them, sorted. Raises UsageError for other sources."""
    for source in map(Path, sources):
        if source.is_dir():
            found = walk(source).images
            if not found:
                videos = f", and its videos have to be named: '{source}/*.mp4'" if any(_is_video(path) for path in source.iterdir()) else ""
                raise ConvnextError(f"folder {source} holds no images{videos}")
            yield from sorted(source / path for path in found)
        elif source.is_file():
            yield source
        else:
            raise UsageError(f"no image or folder {source}{nearest_path(source)}")


def _expand(source: str) -> Iterator[Item]:
    path = Path(source).expanduser()
    if is_stored(source) and not is_shards(source):
        yield from _of_storage(source)
    elif is_embedded(source):
        for shard in open_embedded(source).paths:
            yield from _of_shard(shard)
    elif is_table(source):
        yield from (Item(str(file), _without_parents(name), file) for name, file in images_of(source))
    elif is_archive(source):
        yield from (Item(*image) for image in images_in_archive(source))
    elif is_shards(source):
        for shard, address in find_shards(source):
            yield from _of_shard(shard, address)
    elif path.is_dir():
        yield from (_of_file(found, found.relative_to(path).as_posix()) for found in find_images([str(path)]))
    elif path.is_file() or not glob.has_magic(source):
        yield from (_of_file(found, found.name) for found in find_images([str(path)]))
    else:
        yield from _of_pattern(source)


def _of_storage(source: str) -> Iterator[Item]:
    """Yield images in storage by their addresses. Raises UsageError if there are none."""
    found = stored_objects(source)
    for endings in (ENDINGS, ARRAYS):  # NumPy's files only where there are no other images, as in folders
        if images := [(below, one) for below, one in found if PurePosixPath(below).suffix.lower() in endings]:
            yield from (Item(one.address, _without_parents(below), one) for below, one in images)
            return
    raise UsageError(f"{source} holds no images or .tar shards: download videos, tables and archives first, and name the files")


def _of_pattern(pattern: str) -> Iterator[Item]:
    files = [path for match in matching(os.path.expanduser(pattern)) if (path := Path(match)).is_file()]
    # A pattern without an ending may match files that are not images; an ending in the pattern is trusted.
    if not re.search(r"\.\w+$", pattern):
        files = [path for path in files if path.suffix.lower() in ENDINGS]
    if not files:
        raise UsageError(f"no image matches {pattern}")
    return _together(files)


def _listed() -> Iterator[Item]:
    lines = [os.fsdecode(line.removesuffix(b"\r")) for line in sys.stdin.buffer.read().split(b"\n")]
    paths = [Path(line) for line in lines if line]
    if not paths:
        raise ConvnextError("standard input names no images: write one path per line to it, as `find` does")
    return _together(paths)


def _together(paths: Sequence[Path]) -> Iterator[Item]:
    """Yield files that have nothing in common except the folder above them."""
    absolute = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return (_of_file(path, Path(os.path.relpath(whole, root)).as_posix()) for path, whole in zip(paths, absolute, strict=True))


def _of_file(path: Path, below: str) -> Item:
    return Item(str(path), below, path)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_ENDINGS


def _frames(video: Item, fps: float | None) -> Iterator[Item]:
    """Yield a video's frames, clip.mp4/000012 and so on, whose names sort in their order, and what ends it too early."""
    assert isinstance(video.where, Path)
    found = list_frames(video.where, fps)
    digits = max(6, len(str(found.frames[-1].index))) if found.frames else 0
    below, ending = os.path.splitext(video.below)
    for frame in found.frames:
        number = f"{frame.index:0{digits}d}"
        yield Item(f"{video.name}/{number}", f"{below}/{number}{ending}", frame)
    if found.fault:
        yield Item(video.name, video.below, None, found.fault)


def _of_shard(shard: Path, address: str | None = None) -> Iterator[Item]:
    name = address or str(shard)
    try:
        for member in images_in(shard, address):
            yield Item(f"{name}/{member.name}", _without_parents(member.name), member)
    except (ConvnextError, OSError) as error:
        yield Item(name, shard.name, None, str(error))


def _without_parents(name: str) -> str:
    """Return a path that stays below: the author of a shard or table must not be able to write outside of an output folder."""
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", ".."))


def file_names(items: Iterable[Item], folder: Path, ending: str) -> dict[str, str]:
    """Return for each image, by its name, the path below `folder` of a file made from it.

    The path is that below its source with `ending` in place of its own, or behind it if two would have the same name.
    Raises UsageError if two still have, or if one would overwrite an image.
    """
    items = list(items)
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(os.path.splitext(item.below)[0] + ending, []).append(item)
    chosen = {item.name: _fitting(short if len(group) == 1 else item.below + ending) for short, group in groups.items() for item in group}
    images = {os.path.abspath(item.name) for item in items}
    seen: dict[str, str] = {}
    for name, path in chosen.items():
        if (other := seen.setdefault(path, name)) != name:
            raise UsageError(f"{other} and {name} would both become {folder / path}: predict their folders one by one, each into its own")
        if os.path.abspath(folder / path) in images:
            raise UsageError(f"{folder / path} is one of the images, and would be overwritten: choose another folder")
    return chosen


def _fitting(path: str) -> str:
    """Return the path with each part made to what the file system takes: cut, which a digest keeps different, and as Windows wants it."""
    parts = [part if len(os.fsencode(part)) <= _MAX_NAME else _cut(part) for part in path.split("/")]
    return "/".join(map(_on_windows, parts) if os.name == "nt" else parts)


def _on_windows(part: str) -> str:
    """Return a name with `_` for what Windows refuses, as a name in a shard, an archive or a table may hold it."""
    return re.sub(r'[<>:"\\|?*\x00-\x1f]|[. ]$', "_", part)


def _cut(name: str) -> str:
    whole, ending = os.fsencode(name), os.path.splitext(name)[1][-16:]
    return f"{whole[: _MAX_NAME - 64].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:16]}{ending}"
