"""Folders of pictures: one folder a class, nested as deep as one likes."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from convnext.data.pictures import ENDINGS, read_picture, read_pixels
from convnext.errors import ConvnextError, UsageError, nearest


class ImageFolder:
    """The pictures under `root/CLASS/…` with their labels, sorted by path.

    Args:
        root: the folder.
        classes: the class names in the order of their labels; by default the names of the folders, sorted. Given ones may
            lack a folder here, but a folder that is none of them is an error.

    `skipped` lists the files that are no pictures by their ending, to be told.

    Raises ConvnextError, naming the folder, if there are no class folders, one is empty, or one is no known class.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        if not root.is_dir():
            raise UsageError(f"no folder {root}: data must be a folder with one folder of pictures a class, or digits:train")
        folders = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
        if not folders:
            raise ConvnextError(f"{root} has no class folders: put the pictures of each class into a folder named after it")
        self.root = root
        self.classes = list(classes) if classes is not None else folders
        if unknown := [name for name in folders if name not in self.classes]:
            raise ConvnextError(f"{root / unknown[0]} is none of the classes trained on{nearest(unknown[0], self.classes)}")
        self.paths: list[str] = []  # relative to root; plain text, because millions of Path objects cost gigabytes
        self.labels: list[int] = []
        self.skipped: list[str] = []
        for folder in folders:
            self._add(folder)

    def _add(self, folder: str) -> None:
        before = len(self.paths)
        for base, below, names in os.walk(self.root / folder, followlinks=True):
            below.sort()
            for name in sorted(names):
                path = os.path.relpath(os.path.join(base, name), self.root)
                if os.path.splitext(name)[1].lower() in ENDINGS:
                    self.paths.append(path)
                else:
                    self.skipped.append(path)
        if len(self.paths) == before:
            raise ConvnextError(f"class folder {self.root / folder} holds no pictures: add some, or remove the folder")
        self.labels += [self.classes.index(folder)] * (len(self.paths) - before)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The picture of that position. Raises CorruptPictureError if it can't be decoded."""
        return read_picture(self.root / self.paths[index])

    def pixels(self, index: int) -> Tensor:
        """The same as a uint8 (3, H, W) tensor. Raises CorruptPictureError likewise."""
        return read_pixels(self.root / self.paths[index])

    def label(self, index: int) -> int:
        """The label of that position."""
        return self.labels[index]

    def name(self, index: int) -> str:
        """What to call that position in a report: its path."""
        return str(self.root / self.paths[index])
