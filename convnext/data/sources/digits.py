"""scikit-learn's 1,797 handwritten digits (8 x 8): a dataset that needs no download.

They have one of ten classes each, or any number of facts (`digit-facts:train`), or are numbers (`digit-values:train`).

Source: the test part of UCI's *Optical Recognition of Handwritten Digits* (Alpaydin and Kaynak, 1998).
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from convnext.data.images import to_pixels
from convnext.data.tables.columns import VALUE, TargetKind
from convnext.errors import ConvnextError, UsageError, nearest

CLASSES = [str(digit) for digit in range(10)]
HELD_OUT = 360
# The digits that each is true of.
FACTS = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "closed loop": (0, 6, 8, 9), "above 4": (5, 6, 7, 8, 9)}


@functools.cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images * (255 / 16)).round().astype(np.uint8), bunch.target


class Digits:
    """One part of the digits as (RGB image, label) pairs: 1,437 to train on, or the 360 held out.

    The split is one fixed shuffle, because neighbours in the file come from the same writer and in the order 0 to 9.
    """

    def __init__(self, part: str) -> None:
        order = np.random.RandomState(0).permutation(1797)  # the one generator whose stream NumPy promises to keep
        self.indices = order[:HELD_OUT] if part == "val" else order[HELD_OUT:]
        self.classes = CLASSES
        self.skipped: list[str] = []
        self.remarks: list[str] = []

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        """Return the image at a position, 8 x 8 RGB."""
        return Image.fromarray(_arrays()[0][self.indices[index]]).convert("RGB")

    def pixels(self, index: int) -> Tensor:
        """Return the image as a uint8 (3, 8, 8) tensor."""
        return to_pixels(self.read(index))

    def label(self, index: int) -> int:
        """Return the digit that the image shows."""
        return int(_arrays()[1][self.indices[index]])

    def name(self, index: int) -> str:
        """Return what reports call the image: its number in scikit-learn's file."""
        return f"digit {self.indices[index]}"

    key = name

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return b"%d" % self.label(index)


def open_digits(where: str, classes: Sequence[str] | None = None) -> Digits:
    """Return the images of `digits:train` or `digits:val`; `digits` alone means `digits:val`.

    Raises UsageError for another part, and ConvnextError if `classes`, those of a network, are not the ten digits.
    """
    if where not in ("digits:train", "digits:val", "digits"):
        raise UsageError(f"unknown dataset {where!r}{nearest(where, ['digits:train', 'digits:val'])}")
    source = Digits("train" if where == "digits:train" else "val")
    if classes is not None and list(classes) != source.classes:
        raise ConvnextError(f"the classes of {where} are {', '.join(source.classes)}, not the network's {', '.join(classes)}")
    return source


class DigitFacts(Digits):
    """One part of the digits as (RGB image, positions of classes) pairs; the digit 1 has none of the classes."""

    target_kind: TargetKind = "classes"

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.classes = list(FACTS)

    def label(self, index: int) -> tuple[int, ...]:  # type: ignore[override]
        """Return the positions in `classes` of what is true of the digit."""
        digit = super().label(index)
        return tuple(position for position, digits in enumerate(FACTS.values()) if digit in digits)

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return repr(self.label(index)).encode()


def open_digit_facts(where: str, classes: Sequence[str] | None = None) -> DigitFacts:
    """Return the images of `digit-facts:train` or `digit-facts:val`.

    Raises UsageError for another part, and ConvnextError if `classes`, those of a network, are not these.
    """
    known = ["digit-facts:train", "digit-facts:val"]
    if where not in known:
        raise UsageError(f"unknown dataset {where!r}{nearest(where, known)}")
    source = DigitFacts(where.partition(":")[2])
    if classes is not None and list(classes) != source.classes:
        raise ConvnextError(f"the classes of {where} are {', '.join(source.classes)}, not the network's {', '.join(classes)}")
    return source


class DigitValues(Digits):
    """One part of the digits as (RGB image, number) pairs."""

    target_kind: TargetKind = "value"

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.classes = [VALUE]

    def label(self, index: int) -> float:  # type: ignore[override]
        """Return the digit that the image shows."""
        return float(super().label(index))

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return repr(self.label(index)).encode()


def open_digit_values(where: str, classes: Sequence[str] | None = None) -> DigitValues:
    """Return the images of `digit-values:train` or `digit-values:val`. Raises UsageError for another part."""
    known = ["digit-values:train", "digit-values:val"]
    if where not in known:
        raise UsageError(f"unknown dataset {where!r}{nearest(where, known)}")
    return DigitValues(where.partition(":")[2])
