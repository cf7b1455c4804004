"""The image files that a COCO annotation file lists: where they are, and those that were annotated as they are stored."""

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from convnext.data.formats.opening import ANY_SIZE, opened
from convnext.data.orientation import as_stored, orientation_of

_JPEG = (".jpg", ".jpeg", ".jfif")
_SIDEWAYS = 5  # from this orientation on, width and height are exchanged


def example_name(path: Path) -> str:
    """Return how to write the name of a COCO dataset, for a message: with the annotation file that `path` is or holds, if there is one."""
    files = [path] if path.suffix == ".json" else sorted(path.glob("*.json"))
    return f"coco:{files[0] if files else 'ANNOTATIONS.json'}:FOLDER"


def found_in(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    r"""Return the paths, below the folder, of the images that a file calls `names`, and the paths of those that are missing.

    A name that is no path there may be one of another machine, with \ or /: the longest end of it that is there is taken.
    """

    # Listing each folder once is faster than looking for each of 100,000 files.
    @functools.cache
    def listed(base: str) -> frozenset[str]:
        return frozenset(os.listdir(folder / base)) if (folder / base).is_dir() else frozenset()

    def is_there(path: str) -> bool:
        base, name = os.path.split(path)
        return name in listed(base)

    paths, missing = [], []
    for name in names:
        parts = name.replace("\\", "/").split("/")
        path = next((end for end in (name, *("/".join(parts[at:]) for at in range(len(parts)))) if is_there(end)), None)
        paths.append(name if path is None else path)
        if path is None:
            missing.append(str(folder / name))
    return paths, missing


def stored_turn(path: Path) -> int | None:
    """Return the orientation by which to turn an image that is upright, so that it is as its file stores it.

    None if width and height are the same as stored.
    """
    with opened(path, ANY_SIZE) as image:
        orientation = orientation_of(image)
    return as_stored(orientation) if orientation >= _SIDEWAYS else None


def stored_sideways(folder: Path, paths: Sequence[str], sizes: Iterable[tuple[int, int]]) -> list[str]:
    """Return the JPEG files that are stored in the size (width, height) which an annotation file gives, and that EXIF turns on its side."""
    found = []
    for path, (width, height) in zip(paths, sizes, strict=False):
        if width == height or not path.lower().endswith(_JPEG):
            continue
        try:
            with opened(folder / path, ANY_SIZE) as image:
                if image.size == (width, height) and orientation_of(image) >= _SIDEWAYS:
                    found.append(path)
        except Exception:  # noqa: S112  # as in `read_image`: damaged headers raise anything; reading the image reports it
            continue
    return found
