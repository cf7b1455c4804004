"""Folders of images: one folder a class, nested as deep as one likes."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.images import read_image, read_pixels
from convnext.data.walk import folders_in, walk
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name, counted, printable

_DEEPEST = 8  # folders that hold but one folder, below each other: how far to look for the classes


class ImageFolder:
    """The images under `root/CLASS/…` with their labels, sorted by path.

    Folders whose names are one text in two Unicode forms (é as one character or as e and an accent) are one class.

    Args:
        root: the folder.
        classes: the class names in the order of their labels; by default the names of the folders, sorted. Given ones may
            lack a folder here, but a folder with images that is none of them is an error.

    `skipped` lists the files that are no images by their ending, `remarks` what else is to be told.

    Raises ConvnextError, naming the folder, if there are no class folders, one is empty and `classes` are not given, one is no known
    class, or they are not classes but the parts of a data set, train/ and val/.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        if not root.is_dir():
            raise UsageError(f"no folder {root}: data must be a folder with one folder of images a class, or digits:train")
        found = walk(root)
        folders = {name: class_name(name) for name in folders_in(root) if name not in found.loops}
        if not folders:
            raise ConvnextError(f"{root} has no class folders: put the images of each class into a folder named after it")
        known = sorted(set(folders.values())) if classes is None else [class_name(name) for name in classes]
        if classes is None or not set(folders.values()) <= set(known):
            refuse_parts(root, folders)
        self.root, self.classes, self.skipped = root, known, found.others
        self.remarks = found.remarks()
        self.paths: list[str] = []  # relative to root; plain text, because millions of Path objects cost gigabytes
        self.labels: list[int] = []
        self._add(found.images, folders, closed=classes is not None)

    def _add(self, images: list[str], folders: dict[str, str], closed: bool) -> None:
        places = {name: label for label, name in enumerate(self.classes)}
        beside, filled = [], set()
        for path in images:
            folder, separator, _ = path.partition(os.sep)
            if not separator:
                beside.append(path)
                continue
            if folders[folder] not in places:
                raise ConvnextError(f"{self.root / folder} is none of the classes trained on{nearest(folders[folder], self.classes)}")
            filled.add(folder)
            self.paths.append(path)
            self.labels.append(places[folders[folder]])
        if beside:
            self.remarks.append(f"{counted(len(beside), 'image')} beside the class folders, of no class: the first {printable(beside[0])}")
        for folder in folders:
            if folder not in filled and closed:
                self.remarks.append(f"class folder {printable(str(self.root / folder))} holds no images")
            elif folder not in filled:
                raise ConvnextError(f"class folder {self.root / folder} holds no images: add some, or remove the folder")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image | DeepImage:
        """The image of that position. Raises CorruptImageError if it can't be decoded."""
        return read_image(self.root / self.paths[index])

    def pixels(self, index: int) -> Tensor | DeepImage:
        """The same as a uint8 (3, H, W) tensor. Raises CorruptImageError likewise."""
        return read_pixels(self.root / self.paths[index])

    def label(self, index: int) -> int:
        """The label of that position."""
        return self.labels[index]

    def name(self, index: int) -> str:
        """What to call that position in a report: its path."""
        return str(self.root / self.paths[index])

    def key(self, index: int) -> str:
        """Its path within the folder."""
        return self.paths[index]

    def label_bytes(self, index: int) -> bytes:
        """Its label, to be compared."""
        return b"%d" % self.labels[index]


def parts_of(folder: Path) -> tuple[Path | None, Path | None]:
    """Of a dataset's folder the folders of its training and of its validation (or else test) part; None where none is so called."""
    kinds = {kind: folder / name for name in reversed(folders_in(folder)) if (kind := part_kind(name))}
    return kinds.get("train"), kinds.get("val", kinds.get("test"))


def refuse_parts(root: Path, folders: Iterable[str]) -> None:
    """Raise ConvnextError that says which folders to give, if those in `root` are the parts of a dataset and not classes."""
    if not all(map(part_kind, folders)):
        return
    train, val = parts_of(root)
    keys = " ".join(f"{key}={part}" for key, part in (("data.train", train), ("data.val", val)) if part is not None)
    raise ConvnextError(
        f"{root} holds {', '.join(sorted(folders))}: these are parts of a dataset, not classes. Give {keys} "
        f"(to `convnext data check` and to `convnext eval --data` one of the folders, as {val or train})"
    )


def one_class(where: str, classes: Sequence[str]) -> str:
    """What to say of training data of one class alone: where it is a folder, with what to give instead, or to do."""
    told = f"{where} has one class, {classes[0]}, and a classifier needs two or more"
    place, inner = Path(where).expanduser(), [""]
    for _ in range(_DEEPEST):
        if len(inner) != 1 or not place.is_dir():
            break
        place, inner = place / inner[0], folders_in(place / inner[0])
    if len(inner) < 2:
        return f"{told}: put the images of each into a folder named after it"
    refuse_parts(place, inner)
    return f"{told}: if its folders {', '.join(inner[:5])}{' …' if len(inner) > 5 else ''} are the classes, give {place}"


def part_kind(name: str) -> str | None:
    """Which part of a dataset a folder of that name is: "train", "val", "test", or None for none."""
    match = re.fullmatch(r"(train|val|dev|eval|test)(ing|id|idation|uation)?([ _-]?(set|data|split|images|\d{4}))?", name.casefold())
    return match and {"dev": "val", "eval": "val"}.get(match[1], match[1])
