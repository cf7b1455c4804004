"""Which mask file belongs to which image: by their names, which may end differently."""

import os
import re
import unicodedata
from collections.abc import Collection

# Formats that do not keep the values of a mask, by ending, with the reason.
_LOSSY = dict.fromkeys((".jpg", ".jpeg", ".jfif"), "JPEG blurs values at borders into those of other classes")
_LOSSY |= {".webp": "most WebP files blur values into those of other classes", ".gif": "GIF files reorder values"}


def stem(path: str) -> str:
    """Return the part of a path that an image and its mask share: the path without its ending, é in one Unicode form."""
    return unicodedata.normalize("NFC", os.path.splitext(path)[0])


def tails(images: Collection[str], masks: Collection[str]) -> tuple[str, str] | None:
    """Return how the stems of all images and those of all masks end, beyond names that they share: ("", "_mask") of a and a_mask.

    None unless all masks have an image then, or all images a mask.
    """
    if not images or not masks:
        return None
    first = min(images)
    name = os.path.basename(first)
    for tail in ("", *(name[match.start() :] for match in reversed(list(re.finditer(r"[-_. ]", name))))):
        if not all(image.endswith(tail) for image in images):
            continue
        bases = {image.removesuffix(tail) for image in images}
        for end in (end for base, end in _splits(min(masks)) if base in bases):
            owners = {mask.removesuffix(end) for mask in masks if mask.endswith(end)}
            if len(owners) == len(masks) and (owners <= bases or bases <= owners):
                return tail, end
    return None


def _splits(text: str) -> list[tuple[str, str]]:
    """Return the text in two parts in all ways, the longest first part first."""
    return [(text[:at], text[at:]) for at in range(len(text), 0, -1)]


def why_lossy(path: str) -> str | None:
    """Return why a file can't be a mask, by its ending, and what to do; None if nothing is known against it."""
    reason = _LOSSY.get(os.path.splitext(path)[1].lower())
    return reason and f"{reason}: export the masks as PNG (converting these does not restore the values)"
