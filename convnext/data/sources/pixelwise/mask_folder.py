"""Folders of images with a folder of masks beside them, and ADE20K, which has this layout."""

import os
import re
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from convnext.data.annotations import mask_files
from convnext.data.annotations.mask_files import ClassLine, Coding, coding, read_classes, read_mask
from convnext.data.deep import DeepImage
from convnext.data.images import AS_RGB, Reading, read_image, read_pixels
from convnext.data.sources.folder import part_kind
from convnext.data.walk import folders_in, walk
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name, read_lines

ADE20K = "ade20k"
_ADE20K_PARTS = {"train": "training", "val": "validation"}
_LAYOUT = "a folder needs images/ and masks/ with files of the same names, and classes.txt"


class MaskFolder:
    """The images under `images`, sorted by path, each with the mask under `masks` whose path differs at most in its ending.

    `skipped` lists files that are not images, or not lossless ones for masks, by their ending; `problems` lists masks without an
    image, and masks of an image that has another. Reading the mask of an image that has none raises ConvnextError.

    Raises ConvnextError, naming the folders, if they hold no images, or not one image has a mask.
    """

    reading: Reading = AS_RGB

    def __init__(self, images: Path, masks: Path, meaning: Coding) -> None:
        self.images, self.masks, self.meaning = images, masks, meaning
        self.classes, self.class_ids = list(meaning.classes), meaning.class_ids
        self._meaning_bytes = b"%d:" % zlib.crc32(repr(meaning).encode("utf-8", "backslashreplace"))
        files, values = walk(images), walk(masks, mask_files.ENDINGS)
        self.paths, found = files.images, values.images
        self.skipped = [str(images / path) for path in files.others] + [str(masks / path) for path in values.others]
        self.remarks = [f"{folder}: {remark}" for folder, one in ((images, files), (masks, values)) for remark in one.remarks()]
        self._masks = {_stem(path): path for path in found}
        wanted = {_stem(path) for path in self.paths}
        self.problems = [
            f"{masks / path} is a mask without an image in {images}" for stem, path in self._masks.items() if stem not in wanted
        ]
        self.problems += [
            f"{masks / path} is a second mask of one image, beside {masks / used}"
            for path in found
            if path != (used := self._masks[_stem(path)])
        ]
        if not self.paths:
            raise ConvnextError(f"{images} holds no images: {_LAYOUT}")
        if not wanted & self._masks.keys():
            raise ConvnextError(f"not one image of {images} has a mask: {self.name(0)} needs {self._mask_path(0)}")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image | DeepImage:
        """Return the image at a position. Raises CorruptImageError if it can't be decoded."""
        return read_image(self.images / self.paths[index], how=self.reading)

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image as a uint8 (3, H, W) tensor. Raises CorruptImageError as `read` does."""
        return read_pixels(self.images / self.paths[index], how=self.reading)

    def mask(self, index: int) -> Tensor:
        """Return an image's mask, uint8 (H, W), 255 where ignored. Raises as `read_mask` does, and ConvnextError if it is missing."""
        path = self._mask_path(index)
        if _stem(self.paths[index]) not in self._masks:
            raise ConvnextError(f"{self.name(index)} has no mask: add {path}, or remove the image")
        return torch.from_numpy(read_mask(path, self.meaning, self.reading))

    def name(self, index: int) -> str:
        """Return what reports call the image: its path."""
        return str(self.images / self.paths[index])

    def key(self, index: int) -> str:
        """Return the image's path within the folder of images."""
        return self.paths[index]

    def label_bytes(self, index: int) -> bytes:
        """Return what masks mean and the size of the mask's file as bytes, to compare them with a later run's."""
        path = self._mask_path(index)
        return self._meaning_bytes + (b"%d" % path.stat().st_size if path.exists() else b"-")

    def _mask_path(self, index: int) -> Path:
        return self.masks / self._masks.get(_stem(self.paths[index]), os.path.splitext(self.paths[index])[0] + ".png")


def _stem(path: str) -> str:
    """Return the part of a path that an image and its mask share: the path without its ending, é in one Unicode form."""
    return unicodedata.normalize("NFC", os.path.splitext(path)[0])


def open_mask_folder(where: str, classes: Sequence[str] | None = None) -> MaskFolder:
    """Return the images of `FOLDER`, or with `FOLDER:PART` those of FOLDER/images/PART and FOLDER/masks/PART.

    `:ignore=11` after it (or `:ignore=11,12`) lists values of the masks that are ignored besides 255.
    Raises UsageError if there is no such folder, part or layout, and ConvnextError for an invalid `classes.txt`.
    """
    text, separator, ignored = where.partition(":ignore=")
    if separator and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", ignored):
        raise UsageError(f"{where}: write values of masks after ignore=, as in :ignore=11 or :ignore=11,12")
    folder, _, part = text.rpartition(":") if not Path(text).expanduser().is_dir() and ":" in text else (text, "", "")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"no folder {root}: {_LAYOUT}; or give {ADE20K}:train")
    if missing := [name for name in ("images", "masks") if not (root / name).is_dir()]:
        raise UsageError(f"{root} has no folder {missing[0]}: {_LAYOUT}; ADE20K is named as in {ADE20K}:{root}:train")
    parts = [name for name in folders_in(root / "images") if (root / "masks" / name).is_dir()]
    if part and part not in parts:
        raise UsageError(f"{root} has no part {part!r}: it needs images/{part} and masks/{part}{nearest(part, parts)}")
    if not part and (split := [name for name in parts if part_kind(name)]):
        raise UsageError(f"{root} has the parts {', '.join(parts)}: name one, as in {root}:{split[0]}")
    values = [int(value) for value in ignored.split(",")] if ignored else []
    if beyond := [value for value in values if value > mask_files.IGNORED]:
        raise UsageError(f"{where}: {beyond[0]} is not a value of a mask: these are 0 to 255")
    meaning = _folder_coding(root, values, classes)
    return MaskFolder(root / "images" / part, root / "masks" / part, meaning)


def _folder_coding(root: Path, ignored: list[int], classes: Sequence[str] | None) -> Coding:
    path = root / "classes.txt"
    if path.is_file():
        entries = read_classes(path)
    elif classes is not None:
        entries = [ClassLine(class_name(name)) for name in classes]
    else:
        raise ConvnextError(
            f"no {path}: write one class name per line, the first for the value 0; with 'road 128 64 128' masks can be colours"
        )
    if ignored and entries and entries[0].colour is not None:
        raise UsageError(
            f"ignore={ignored[0]}: {path} gives colours; put the name of the class to ignore in parentheses there, as in '(void) 0 0 0'"
        )
    return coding(entries, str(path), ignored, classes)


def open_ade20k(where: str, classes: Sequence[str] | None = None) -> MaskFolder:
    """Return ADE20K as distributed for scene parsing, 150 classes: `ade20k:train` or `ade20k:val`.

    Its folder is ADEChallengeData2016 in `$CONVNEXT_DATA`, by default `data`, or the one in `ade20k:/some/folder:train`.
    The value 0, which means everything else, is ignored; 1 to 150 become 0 to 149. Of a class's names the first is used.
    Source: Zhou et al., *Scene Parsing through ADE20K Dataset* (2017), http://sceneparsing.csail.mit.edu.

    Raises UsageError for another part, and ConvnextError if files are missing.
    """
    given, _, part = where.partition(":")[2].rpartition(":")
    if part not in _ADE20K_PARTS:
        raise UsageError(f"unknown dataset {where!r}{nearest(where, [f'{ADE20K}:{part}' for part in _ADE20K_PARTS])}")
    root = Path(given or Path(os.environ.get("CONVNEXT_DATA") or "data", "ADEChallengeData2016")).expanduser()
    images, masks, names = root / "images" / _ADE20K_PARTS[part], root / "annotations" / _ADE20K_PARTS[part], root / "objectInfo150.txt"
    if absent := [path for path in (images, masks, names) if not path.exists()]:
        raise ConvnextError(
            f"no {absent[0]}: unpack ADEChallengeData2016.zip and name its folder, as in {ADE20K}:/some/ADEChallengeData2016:{part}"
        )
    lines = read_lines(names)[1:]
    entries = [ClassLine("(other)", is_ignored=True), *(ClassLine(line.split("\t")[-1].split(",")[0].strip()) for line in lines)]
    return MaskFolder(images, masks, coding(entries, str(names), classes=classes))
