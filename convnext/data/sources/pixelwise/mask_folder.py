"""Folders of images with a folder of masks beside them."""

import os
import re
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
from convnext.data.sources.pixelwise.pairing import stem, tails, why_lossy
from convnext.data.walk import folders_in, walk
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name

ADE20K, CITYSCAPES = "ade20k", "cityscapes"
LEFT_IMAGES = "leftImg8bit"  # Cityscapes' folder of images
_LAYOUT = "a folder needs images/ and masks/ with files of the same names, and classes.txt"


class MaskFolder:
    """The images under `images`, sorted by path, each with the mask under `masks` of the same path, but for endings.

    Args:
        images, masks: the folders.
        meaning: of the masks.
        ends: how the names of all images, and of their masks, end before the ending: ("", "_mask") for a.jpg and a_mask.png. Masks whose
            names end otherwise do not count. By default found from the names.

    `skipped` lists files that are not images, or not lossless ones for masks, by their ending; `problems` lists masks without an
    image, and masks of an image that has another. Reading the mask of an image that has none raises ConvnextError.

    Raises ConvnextError, naming the folders, if they hold no images, or not one image has a mask.
    """

    reading: Reading = AS_RGB

    def __init__(self, images: Path, masks: Path, meaning: Coding, ends: tuple[str, str] | None = None) -> None:
        self.images, self.masks, self.meaning = images, masks, meaning
        self.classes, self.class_ids = list(meaning.classes), meaning.class_ids
        self._meaning_bytes = b"%d:" % zlib.crc32(repr(meaning).encode("utf-8", "backslashreplace"))
        files, values = walk(images), walk(masks, mask_files.ENDINGS)
        self.paths = files.images
        self.skipped = [str(images / path) for path in files.others] + [str(masks / path) for path in values.others]
        self.remarks = [f"{folder}: {remark}" for folder, one in ((images, files), (masks, values)) for remark in one.remarks()]
        self.ends = ends or self._found_ends([*values.images, *(path for path in values.others if why_lossy(path))])
        found = [path for path in values.images if stem(path).endswith(self.ends[1])]
        self._masks = {self._mask_name(path): path for path in found}
        self._lossy = {self._mask_name(path): path for path in values.others if why_lossy(path)}
        wanted = {self._image_name(path) for path in self.paths}
        self.problems = [
            f"{masks / path} is a mask without an image in {images}" for name, path in self._masks.items() if name not in wanted
        ]
        self.problems += [
            f"{masks / path} is a second mask of one image, beside {masks / used}"
            for path in found
            if path != (used := self._masks[self._mask_name(path)])
        ]
        if not self.paths:
            raise ConvnextError(f"{images} holds no images: {_LAYOUT}")
        if not wanted & self._masks.keys():
            fault = self._lossy_fault(0) or f"{self.name(0)} needs {self._mask_path(0)}"
            raise ConvnextError(f"not one image of {images} has a mask: {fault}")

    def _found_ends(self, masks: Sequence[str]) -> tuple[str, str]:
        """Return how names end where not one mask has the name of an image."""
        stems = [stem(path) for path in self.paths]
        found = None if {*stems} & {stem(path) for path in masks} else tails(stems, [stem(path) for path in masks])
        if found is None:
            return "", ""
        self.remarks.append(f"{self.masks}: the mask of NAME{found[0]} is called NAME{found[1]}")
        return found

    def _image_name(self, path: str) -> str:
        return stem(path).removesuffix(self.ends[0])

    def _mask_name(self, path: str) -> str:
        return stem(path).removesuffix(self.ends[1])

    def _lossy_fault(self, index: int) -> str | None:
        path = self._lossy.get(self._image_name(self.paths[index]))
        return path and f"{self.masks / path} is no mask: {why_lossy(path)}"

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
        if self._image_name(self.paths[index]) not in self._masks:
            raise ConvnextError(self._lossy_fault(index) or f"{self.name(index)} has no mask: add {path}, or remove the image")
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
        name = os.path.splitext(self.paths[index])[0].removesuffix(self.ends[0]) + self.ends[1] + ".png"
        return self.masks / self._masks.get(self._image_name(self.paths[index]), name)


def open_mask_folder(where: str, classes: Sequence[str] | None = None) -> MaskFolder:
    """Return the images of `FOLDER`, or with `FOLDER:PART` those of FOLDER/images/PART and FOLDER/masks/PART.

    `:ignore=11` after it (or `:ignore=11,12`) lists values of the masks that are ignored besides 255; `:suffix=_mask` says that the mask of
    a.jpg is a_mask.png, where masks/ holds other files too.

    Raises UsageError if there is no such folder, part or layout, and ConvnextError for an invalid `classes.txt`.
    """
    text, options = where, dict[str, str]()
    while match := re.search(r":(ignore|suffix)=([^:]*)$", text):
        options[match[1]], text = match[2], text[: match.start()]
    ignored, suffix = options.get("ignore"), options.get("suffix")
    if ignored is not None and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", ignored):
        raise UsageError(f"{where}: write values of masks after ignore=, as in :ignore=11 or :ignore=11,12")
    folder, _, part = text.rpartition(":") if not Path(text).expanduser().is_dir() and ":" in text else (text, "", "")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"no folder {root}: {_LAYOUT}; or give {ADE20K}:train")
    if (root / LEFT_IMAGES).is_dir():
        raise UsageError(f"{root} looks like Cityscapes: name it as in {CITYSCAPES}:{root}:train")
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
    return MaskFolder(root / "images" / part, root / "masks" / part, meaning, None if suffix is None else ("", suffix))


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
