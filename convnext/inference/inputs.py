"""What is to be predicted: images named one by one, in folders, by patterns, in a list on standard input, or in shards."""

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
from convnext.data.images import ENDINGS, CorruptImageError, read_image
from convnext.data.sources.shards import Member, find_shards, images_in, is_shards
from convnext.data.walk import matching, walk
from convnext.errors import ConvnextError, UsageError

STANDARD_INPUT = "-"
_LONGEST = 255  # bytes of a name on all file systems of today; in a shard it may be longer


@dataclass(frozen=True, slots=True)
class Item:
    """An image that is to be predicted."""

    name: str  # by which the outputs call it: its path, or its shard's path and its own in there
    below: str  # its path below what was named, after which files made of it are called
    where: Path | Member | None  # None for a part of a shard that can't be read
    fault: str = ""  # of that part

    def read(self) -> Image.Image | DeepImage:
        """The image, upright. Raises CorruptImageError if it can't be read."""
        if self.where is None:
            raise CorruptImageError(self.fault)
        if isinstance(self.where, Path):
            return read_image(self.where)
        try:
            content = self.where.content()
        except OSError as error:
            raise CorruptImageError(f"{self.name}: {error}") from error
        return read_image(content, self.name)


def find_items(sources: Sequence[str]) -> list[Item]:
    """All images of the sources in their order, each once.

    Args:
        sources: images; folders, with all images below them, sorted; shell patterns such as `photos/**/*.jpg`; shards, as
            `convnext.data.sources.shards` names them, whose images need no labels; or `-`, for paths on standard input, one a line, of
            which one that can't be read is no reason to stop.

    Raises UsageError for what is none of these, and ConvnextError for a folder or list without images.
    """
    items: dict[str, Item] = {}
    for source in sources:
        for item in _listed() if source == STANDARD_INPUT else _expand(source):
            items.setdefault(item.name, item)
    return list(items.values())


def find_images(sources: Sequence[str]) -> Iterator[Path]:
    """Files as they are named, folders with all images below them as `walk` finds them, sorted. Raises UsageError for what is neither."""
    for source in map(Path, sources):
        if source.is_dir():
            found = walk(source).images
            if not found:
                raise ConvnextError(f"folder {source} holds no images")
            yield from sorted(source / path for path in found)
        elif source.is_file():
            yield source
        else:
            raise UsageError(f"no image or folder {source}")


def _expand(source: str) -> Iterator[Item]:
    path = Path(source).expanduser()
    if is_shards(source):
        for shard in find_shards(source):
            yield from _of_shard(shard)
    elif path.is_dir():
        yield from (_of_file(found, str(found.relative_to(path))) for found in find_images([str(path)]))
    elif path.is_file() or not glob.has_magic(source):
        yield from (_of_file(found, found.name) for found in find_images([str(path)]))
    else:
        yield from _of_pattern(source)


def _of_pattern(pattern: str) -> Iterator[Item]:
    files = [path for match in matching(os.path.expanduser(pattern)) if (path := Path(match)).is_file()]
    # What matches a pattern of everything may be no image; what is named by its ending is taken at its word.
    if not re.search(r"\.\w+$", pattern):
        files = [path for path in files if path.suffix.lower() in ENDINGS]
    if not files:
        raise UsageError(f"no image matches {pattern}")
    return _together(files)


def _listed() -> Iterator[Item]:
    lines = [os.fsdecode(line.removesuffix(b"\r")) for line in sys.stdin.buffer.read().split(b"\n")]
    paths = [Path(line) for line in lines if line]
    if not paths:
        raise ConvnextError("standard input names no images: give it a path a line, as `find` does")
    return _together(paths)


def _together(paths: Sequence[Path]) -> Iterator[Item]:
    """Files that have nothing in common but the folder they lie below."""
    absolute = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return (_of_file(path, os.path.relpath(whole, root)) for path, whole in zip(paths, absolute, strict=True))


def _of_file(path: Path, below: str) -> Item:
    return Item(str(path), below, path)


def _of_shard(shard: Path) -> Iterator[Item]:
    try:
        for member in images_in(shard):
            # Whoever wrote the shard must not choose a place outside of an output folder.
            parts = [part for part in PurePosixPath(member.name).parts if part not in ("/", "..")]
            yield Item(f"{shard}/{member.name}", "/".join(parts), member)
    except (ConvnextError, OSError) as error:
        yield Item(str(shard), shard.name, None, str(error))


def file_names(items: Iterable[Item], folder: Path, ending: str) -> dict[str, str]:
    """Of each image, by its name, the path below `folder` of a file made of it.

    That is its path below its source, with `ending` in place of its own; or behind it where two would be called the same.
    Raises UsageError if two still are, or one would overwrite an image.
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
    """The path with what is longer than a file system takes cut in each of its parts, and told apart by a digest."""
    return "/".join(part if len(os.fsencode(part)) <= _LONGEST else _cut(part) for part in path.split("/"))


def _cut(name: str) -> str:
    whole, ending = os.fsencode(name), os.path.splitext(name)[1][-16:]
    return f"{whole[: _LONGEST - 64].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:16]}{ending}"
