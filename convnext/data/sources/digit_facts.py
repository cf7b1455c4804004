"""scikit-learn's digits with any number of classes each: facts about the digit. A multi-label dataset that needs no download."""

from collections.abc import Sequence

from convnext.data.sources.digits import Digits
from convnext.errors import ConvnextError, UsageError, nearest

# The digits that each is true of.
FACTS = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "closed loop": (0, 6, 8, 9), "above 4": (5, 6, 7, 8, 9)}


class DigitFacts(Digits):
    """One part of the digits as (RGB image, positions of classes) pairs; the digit 1 has none of the classes."""

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
