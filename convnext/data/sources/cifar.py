"""CIFAR-10 and CIFAR-100: 60,000 photographs of 32 x 32 pixels, 10,000 of them to test on.

Source: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009), https://www.cs.toronto.edu/~kriz/cifar.html.
Read from the binary version: plain records, where the Python version holds pickles, which can run code.
"""

import functools
import hashlib
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from convnext.data.download import download
from convnext.data.images import to_pixels
from convnext.errors import ConvnextError, UsageError, nearest


@dataclass(frozen=True)
class Version:
    """One of the two datasets, as published."""

    title: str
    archive: str
    md5: str
    folder: str
    names: str  # the file of class names
    parts: dict[str, tuple[str, ...]]  # part → its files
    label_bytes: int  # before the pixels of each record; the last one is the label


VERSIONS = {
    "cifar10": Version(
        title="CIFAR-10",
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        names="batches.meta.txt",
        parts={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "val": ("test_batch.bin",)},
        label_bytes=1,
    ),
    "cifar100": Version(
        title="CIFAR-100",
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        names="fine_label_names.txt",
        parts={"train": ("train.bin",), "val": ("test.bin",)},
        label_bytes=2,  # one of 20 groups of classes, then the class
    ),
}
_ADDRESS = "https://www.cs.toronto.edu/~kriz/"
_PIXELS = (3, 32, 32)  # the red plane, the green, the blue


class Cifar:
    """One part of CIFAR-10 or CIFAR-100 as (RGB image, label) pairs: 50,000 to train on ("train") or the other 10,000 ("val").

    Args:
        version: "cifar10" or "cifar100" (with its 100 fine labels).
        part: "train" or "val".
        root: the folder of the archive, which is downloaded to it if it is missing.

    Raises ConvnextError, naming the archive, if it is missing and can't be downloaded, or is not the published one.
    """

    def __init__(self, version: str, part: str, root: Path) -> None:
        self.version, self.part, self.root = version, part, root
        self.classes = list(_content(version, part, root)[2])
        self.skipped: list[str] = []
        self.remarks: list[str] = []

    def __len__(self) -> int:
        return len(_content(self.version, self.part, self.root)[0])

    def read(self, index: int) -> Image.Image:
        """Return the image at a position, 32 x 32 RGB."""
        return Image.fromarray(_content(self.version, self.part, self.root)[0][index].transpose(1, 2, 0))

    def pixels(self, index: int) -> Tensor:
        """Return the image as a uint8 (3, 32, 32) tensor."""
        return to_pixels(self.read(index))

    def label(self, index: int) -> int:
        """Return the position in `classes` of the image's class."""
        return int(_content(self.version, self.part, self.root)[1][index])

    def name(self, index: int) -> str:
        """Return what reports call the image: dataset, part and number."""
        return f"{VERSIONS[self.version].title} {self.part} {index}"

    key = name

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return b"%d" % self.label(index)


def open_cifar(where: str, classes: Sequence[str] | None = None) -> Cifar:
    """Return the images of `cifar10:train`, `cifar10:val`, `cifar100:train` or `cifar100:val`.

    Args:
        where: one of these; the archive is in `$CONVNEXT_DATA`, by default `data`, or in the folder named between the
            colons, as in `cifar10:/some/folder:train`.
        classes: the class names that the labels count, if a network already has some.

    Raises UsageError for another part, and ConvnextError if the archive can't be downloaded or its classes differ from `classes`.
    """
    version, _, rest = where.partition(":")
    root, _, part = rest.rpartition(":")
    if part not in ("train", "val"):
        raise UsageError(f"unknown dataset {where!r}{nearest(where, [f'{version}:train', f'{version}:val'])}")
    source = Cifar(version, part, Path(root or os.environ.get("CONVNEXT_DATA") or "data").expanduser())
    if classes is not None and list(classes) != source.classes:
        raise ConvnextError(f"the classes of {where} are {_some(source.classes)}, not the network's {_some(classes)}")
    return source


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:10]) + (" …" if len(classes) > 10 else "")


@functools.cache  # 150 MB at most; kept out of the object, so that it is not pickled for a worker
def _content(version: str, part: str, root: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return pixels, uint8 (images, 3, 32, 32); labels, int64 (images,); and class names."""
    about = VERSIONS[version]
    path = root / about.archive
    download(_ADDRESS + about.archive, path)
    with path.open("rb") as file:
        if (found := hashlib.file_digest(file, "md5").hexdigest()) != about.md5:
            raise ConvnextError(
                f"{path} is damaged or not the published archive (MD5 {found}, not {about.md5}): remove it, "
                f"and the next run downloads it again from {_ADDRESS}{about.archive}"
            )
    files = {f"{about.folder}/{name}": b"" for name in (*about.parts[part], about.names)}
    with tarfile.open(path) as archive:  # in the order of the archive: going back in a compressed one means unpacking it again
        for member in archive:
            if member.name in files and (stream := archive.extractfile(member)):
                files[member.name] = stream.read()
    names = files.pop(f"{about.folder}/{about.names}").decode().split()
    records = np.frombuffer(b"".join(files.values()), np.uint8).reshape(-1, about.label_bytes + 3072)
    return records[:, about.label_bytes :].reshape(-1, *_PIXELS), records[:, about.label_bytes - 1].astype(np.int64), names
