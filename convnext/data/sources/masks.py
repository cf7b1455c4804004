"""From the text of `data.train` and `data.val` to images with masks, and what can be wrong with them."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from convnext.data.contents import Listed
from convnext.data.deep import DeepImage, Depths
from convnext.data.images import CorruptImageError
from convnext.data.sources.mask_files import IGNORED
from convnext.data.sources.mask_folder import ADE20K, open_ade20k, open_folder
from convnext.data.sources.open import Subset
from convnext.data.sources.semantic import open_semantic
from convnext.data.split import split
from convnext.errors import ConvnextError


class MaskSource(Listed, Protocol):
    """Images with masks by position: what every format offers. A new one is a file and a line in `open_segmentation`."""

    classes: list[str]
    class_ids: list[int | tuple[int, int, int]] | None  # what in masks means each class, a value or a colour; None where no file says
    skipped: list[str]  # files left out, to be told
    remarks: list[str]  # what else is to be told
    problems: list[str]  # what opening found wrong, for `check`

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image | DeepImage: ...
    def pixels(self, index: int) -> Tensor | DeepImage: ...  # the same as a uint8 (3, H, W) tensor, where it has 8 bits
    def mask(self, index: int) -> Tensor: ...  # uint8 (H, W): class indices from 0, 255 = ignored
    def name(self, index: int) -> str: ...


class MaskSubset(Subset):
    """Some positions of another source."""

    def __init__(self, source: MaskSource, indices: Sequence[int]) -> None:
        super().__init__(source, indices)
        self.class_ids, self.problems = source.class_ids, source.problems

    def mask(self, index: int) -> Tensor:
        return self.source.mask(self.indices[index])


def open_segmentation(where: str, classes: Sequence[str] | None = None) -> MaskSource:
    """The images with masks that `where` names.

    Args:
        where: `ade20k:train`, `ade20k:val` or `ade20k:/folder:train`; or a folder with images/, masks/ and classes.txt,
            `FOLDER:train` for its images/train and masks/train, with `:ignore=11` behind it where the value 11 is no class;
            or data to detect in, `scenes:train` or `coco:ANNOTATIONS.json:FOLDER`, whose pixels are objects or background.
        classes: the class names that the masks count, where a network already has some.

    Line n of classes.txt, from 0, names what the value n of a mask means, or, as `road 128 64 128`, what a colour means. A name
    in parentheses, as `(void)`, is of no class but to be ignored; so is the value 255. See `mask_files.read_classes`.
    """
    if where.startswith(f"{ADE20K}:"):
        return open_ade20k(where, classes)
    if where.startswith(("scenes:", "coco:")):
        return open_semantic(where, classes)
    return open_folder(where, classes)


def mask_of(source: MaskSource, index: int, image: Image.Image | DeepImage | Tensor) -> Tensor:
    """The mask of a position, whose image is that.

    Raises CorruptImageError if it can't be decoded, and ConvnextError if it is none of that image.
    """
    mask = source.mask(index)
    height, width = image.shape[1:] if isinstance(image, Tensor) else image.size[::-1]
    if mask.shape != (height, width):
        raise ConvnextError(
            f"{source.name(index)} is {width} x {height} pixels, its mask {mask.shape[1]} x {mask.shape[0]}: "
            "a mask must have the size of its image, upright as EXIF says"
        )
    return mask


def check(source: MaskSource, depths: Depths | None = None) -> list[str]:
    """Everything that is wrong with images and masks, each by its path, on one line; reads them all, in a few threads.

    Args:
        depths: what notes the images of more than 8 bits.
    """

    def read(index: int) -> tuple[str | None, set[int]]:
        try:
            image = source.pixels(index)
            if depths is not None:
                depths.add(image)
            mask = mask_of(source, index, image)
        except (ConvnextError, CorruptImageError) as error:
            return str(error), set()
        return None, set(torch.bincount(mask.flatten()).nonzero().flatten().tolist())

    # Decoding an image sets and restores Python's filter of warnings, in threads not always in that order.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(read, range(len(source))))
    problems = source.problems + [message for message, _ in found if message]
    labelled = set().union(*(labels for _, labels in found)) - {IGNORED}
    if not problems and len(labelled) < 2:
        only = "no class at all" if not labelled else f"no class but {source.classes[labelled.pop()]!r}"
        problems.append(
            f"all masks together hold {only}: 255 is ignored, so where it is a class, give classes.txt colours ('thing 255 255 255')"
        )
    return problems


def hold_out(source: MaskSource, fraction: float, seed: int) -> tuple[MaskSource, MaskSource]:
    """Split a source in two, the second with about `fraction` of the images, at least one, chosen by name; see `split.split`."""
    rest, held = split(source, fraction, seed, groups=[0] * len(source))
    return MaskSubset(source, rest), MaskSubset(source, held)
