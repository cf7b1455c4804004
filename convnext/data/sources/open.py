"""From the text of `data.train` and `data.val` to labelled images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from convnext.data import imagenet
from convnext.data.contents import Listed
from convnext.data.deep import DeepImage
from convnext.data.sources.cifar import VERSIONS, is_cifar, open_cifar
from convnext.data.sources.digits import Digits
from convnext.data.sources.folder import ImageFolder, parts_of
from convnext.data.sources.shards import is_shards, open_shards
from convnext.data.split import split
from convnext.errors import ConvnextError, UsageError, nearest


class Source(Protocol):
    """Labelled images by position: what every data set format offers. A new format is one file and one line in `open_source`."""

    classes: list[str]
    skipped: list[str]  # files that are no images
    remarks: list[str]  # what else is to be told to the user

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image | DeepImage: ...
    def pixels(self, index: int) -> Tensor | DeepImage: ...  # the same as a uint8 (3, H, W) tensor, the fastest way there is: for training
    def label(self, index: int) -> int: ...
    def name(self, index: int) -> str: ...


class TrainingSource(Source, Listed, Protocol):
    """Images to train on: a resumed run must be able to tell whether they changed."""


class Subset:
    """Some positions of another source."""

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.classes, self.skipped, self.remarks = source.classes, source.skipped, list(source.remarks)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image | DeepImage:
        return self.source.read(self.indices[index])

    def pixels(self, index: int) -> Tensor | DeepImage:
        return self.source.pixels(self.indices[index])

    def label(self, index: int) -> int:
        return self.source.label(self.indices[index])

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def key(self, index: int) -> str:
        return self.source.key(self.indices[index])

    def label_bytes(self, index: int) -> bytes:
        return self.source.label_bytes(self.indices[index])


def open_source(where: str, classes: Sequence[str] | None = None) -> TrainingSource:
    """The labelled images that `where` names.

    Args:
        where: `digits:train` or `digits:val`; `cifar10:train`, `cifar100:val` and the like, or `cifar10:/folder:train`;
            WebDataset shards (`x-{000..007}.tar`, `x-*.tar`, a folder of them, an `https://` or `hf://datasets/…` address);
            or a folder with one folder of images a class, named as one likes or by ImageNet's synsets.
        classes: the class names that the labels count, where a network already has some.
    """
    if where in ("digits:train", "digits:val", "digits"):
        source = Digits("train" if where == "digits:train" else "val")
        if classes is not None and list(classes) != source.classes:
            raise ConvnextError(f"the classes of {where} are {', '.join(source.classes)}, not the network's {', '.join(classes)}")
        return source
    if where.startswith("digits:"):
        raise UsageError(f"no data is called {where!r}{nearest(where, ['digits:train', 'digits:val'])}")
    if is_cifar(where):
        return open_cifar(where, classes)
    if is_shards(where):
        return open_shards(where, classes)
    kind, colon, folder = where.partition(":")
    if colon and re.fullmatch(r"[\w-]{2,}", kind) and not Path(where).exists():  # one letter is a drive of Windows
        if kind in imagenet.EVALUATION_SETS:
            raise UsageError(f"{where} is a set for `convnext eval --data` alone; to train on its images give the folder, {folder}")
        known = ["digits", *VERSIONS, *imagenet.EVALUATION_SETS]
        raise UsageError(f"no data is called {where!r}{nearest(kind + ':', [f'{name}:' for name in known])}")
    return ImageFolder(Path(where).expanduser(), classes)


def train_and_val(where: str) -> tuple[str, str]:
    """The two names, for `open_source`, of a data set that has both parts.

    Args:
        where: `digits`, `cifar10`, `cifar100`, or a folder with train/ and val/ or with train-*.tar and val-*.tar.

    Raises UsageError if it has not.
    """
    if where in ("digits", "cifar10", "cifar100"):
        return f"{where}:train", f"{where}:val"
    folder = Path(where).expanduser()
    train, val = parts_of(folder) if folder.is_dir() else (None, None)
    if train is not None and val is not None:
        return str(train), str(val)
    if any(folder.glob("train-*.tar")) and any(folder.glob("val-*.tar")):
        return str(folder / "train-*.tar"), str(folder / "val-*.tar")
    raise UsageError(f"{where} has no train and val: neither folders of these names nor shards train-*.tar and val-*.tar")


def hold_out(source: TrainingSource, fraction: float, seed: int) -> tuple[TrainingSource, TrainingSource]:
    """Split a source in two, the second with about `fraction` of each class, chosen by name; see `split.split`."""
    rest, held = split(source, fraction, seed, groups=[source.label(index) for index in range(len(source))])
    return Subset(source, rest), Subset(source, held)
