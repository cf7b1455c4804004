"""Folders of images: one folder per class, which may hold further folders."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.images import AS_RGB, Reading, read_image, read_pixels
from convnext.data.walk import folders_in, is_clutter, walk
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name, counted, printable

_DEEPEST = 8  # folders with one folder each: how many levels down to look for the classes


class ImageFolder:
    """The images under `root/CLASS/…` with their labels, sorted by path.

    Folders whose names are one text in two Unicode forms (é as one character or as e and an accent) are one class.

    Args:
        root: the folder.
        classes: the class names in the order of their labels; by default the names of the folders, sorted. A class may
            lack a folder, but each folder with images must be one of the classes.

    `skipped` lists the files whose ending is not an image's.

    Raises ConvnextError, naming the folder, if there are no class folders, one is empty and `classes` are not given, one is not a known
    class, or they are not classes but the parts of a dataset, train/ and val/.
    """

    reading: Reading = AS_RGB

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        if not root.is_dir():
            what = f"{root} is a file" if root.is_file() else f"no folder {root}"
            raise UsageError(
                f"{what}: data must be a folder with one folder of images per class, a zip or tar of one, a table (.csv), or digits:train"
            )
        found = walk(root)
        folders = {name: class_name(name) for name in folders_in(root) if name not in found.loops}
        if not folders:
            raise ConvnextError(
                f"{root} has no class folders: put the images of each class into a folder named after it{_tables_near(root)}"
            )
        known = sorted(set(folders.values())) if classes is None else [class_name(name) for name in classes]
        if classes is None or not set(folders.values()) <= set(known):
            refuse_parts(root, folders)
        self.root, self.classes, self.skipped = root, known, found.others
        self.remarks = found.remarks()
        # Paths are relative to root, and plain text, because millions of Path objects cost gigabytes.
        self.paths, self.labels, remarks = labels_by_folder(found.images, folders, known, root, os.sep, classes is not None)
        self.remarks += remarks

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image | DeepImage:
        """Return the image at a position. Raises CorruptImageError if it can't be decoded."""
        return read_image(self.root / self.paths[index], how=self.reading)

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image as a uint8 (3, H, W) tensor. Raises CorruptImageError as `read` does."""
        return read_pixels(self.root / self.paths[index], how=self.reading)

    def label(self, index: int) -> int:
        """Return the position in `classes` of the image's class."""
        return self.labels[index]

    def name(self, index: int) -> str:
        """Return what reports call the image: its path."""
        return str(self.root / self.paths[index])

    def key(self, index: int) -> str:
        """Return the image's path within the folder."""
        return self.paths[index]

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return b"%d" % self.labels[index]


def labels_by_folder(
    images: Sequence[str], folders: Mapping[str, str], classes: Sequence[str], root: Path, separator: str, closed: bool
) -> tuple[list[str], list[int], list[str]]:
    """Return the paths of the images in class folders, their labels, and what to report of the rest.

    Args:
        images: paths below `root`.
        folders: the class of each folder in `root`.
        classes: the class names in the order of their labels.
        root: the folder, for messages.
        separator: between the parts of a path.
        closed: whether the classes were given, so that a folder of them may be empty.

    Raises ConvnextError for a folder that is not one of the classes, and for an empty one unless `closed`.
    """
    labels = {name: label for label, name in enumerate(classes)}
    paths: list[str] = []
    found: list[int] = []
    beside, filled, remarks = [], set(), []
    for path in images:
        folder, inside, _ = path.partition(separator)
        if not inside:
            beside.append(path)
            continue
        if folders[folder] not in labels:
            raise ConvnextError(f"{root / folder} is not one of the classes trained on{nearest(folders[folder], classes)}")
        filled.add(folder)
        paths.append(path)
        found.append(labels[folders[folder]])
    if beside:
        remarks.append(f"skipped {counted(len(beside), 'image')} outside the class folders, the first {printable(beside[0])}")
    for folder in folders:
        if folder not in filled and closed:
            remarks.append(f"class folder {printable(str(root / folder))} holds no images")
        elif folder not in filled:
            raise ConvnextError(f"class folder {root / folder} holds no images: add some, or remove the folder")
    return paths, found, remarks


def parts_of(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the folders of a dataset's training and validation (or else test) part; None for a part without a folder of such a name."""
    return _parts_among(folder, folders_in(folder))


def _parts_among(folder: Path, names: Iterable[str]) -> tuple[Path | None, Path | None]:
    kinds = {kind: folder / name for name in sorted(names, reverse=True) if (kind := part_kind(name))}
    return kinds.get("train"), kinds.get("val", kinds.get("test"))


def refuse_parts(root: Path, folders: Iterable[str]) -> None:
    """Raise ConvnextError that names the folders to give, if those in `root` are the parts of a dataset and not classes."""
    if not all(map(part_kind, folders)):
        return
    train, val = _parts_among(root, folders)
    keys = " ".join(f"{key}={part}" for key, part in (("data.train", train), ("data.val", val)) if part is not None)
    raise ConvnextError(
        f"{root} holds {', '.join(sorted(folders))}: these are parts of a dataset, not classes. Give {keys} "
        f"(for `convnext data check` and `convnext eval --data`, give one of the folders, for instance {val or train})"
    )


def one_class(where: str, classes: Sequence[str]) -> str:
    """Return the error message for training data of a single class; for a folder, with the folder to give instead."""
    fault = f"{where} has one class, {classes[0]}, and a classifier needs two or more"
    folder, inner = Path(where).expanduser(), [""]
    for _ in range(_DEEPEST):
        if len(inner) != 1 or not folder.is_dir():
            break
        folder, inner = folder / inner[0], folders_in(folder / inner[0])
    if len(inner) < 2:
        return f"{fault}: put the images of each class into a folder named after it"
    refuse_parts(folder, inner)
    return f"{fault}: if its folders {', '.join(inner[:5])}{' …' if len(inner) > 5 else ''} are the classes, give {folder}"


def _tables_near(root: Path) -> str:
    """Return the end of a message: the tables in a folder or beside it, which may hold the labels of its images."""
    found = [path for folder in (root, root.resolve().parent) for path in sorted(folder.glob("*.csv")) if not is_clutter(path.name)]
    return f", or give the table of their labels, as {found[0]}" if found else ""


def part_kind(name: str) -> str | None:
    """Return the part of a dataset that a folder's name means: "train", "val" or "test"; None for other names."""
    match = re.fullmatch(r"(train|val|dev|eval|test)(ing|id|idation|uation)?([ _-]?(set|data|split|images|\d{4}))?", name.casefold())
    return match and {"dev": "val", "eval": "val"}.get(match[1], match[1])
