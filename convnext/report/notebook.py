"""Results as a notebook shows them: HTML of bounded size, in the notebook's own light or dark colours."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count

import numpy as np
from PIL import Image

from convnext.report import page, palette
from convnext.text import printable, shortened

_MAX_SIDE = 640  # pixels of a small copy
_SMALL = 64  # pixels of the long side: smaller images show their pixels
_ENLARGED = 160  # pixels at which they are shown
_MAX_NAME = 40  # characters
_IDS = re.compile(r'(\bid="|url\(#|href="#)')  # what names and refers to parts of a drawing
_drawings = count()  # each gets names of its own: all outputs of a notebook are one document


@dataclass(frozen=True)
class Bar:
    """A name with a share as a bar."""

    name: str
    share: float  # 0 to 1
    colour: str = palette.BLUE


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image, at most 640 pixels a side, as a file's bytes: it stays with what was predicted of the image."""

    content: bytes
    original: tuple[int, int]  # width and height of the image, in pixels

    @classmethod
    def of(cls, image: Image.Image) -> "Thumbnail":
        """Return the small copy of an RGB image."""
        small, buffer = image, BytesIO()
        if max(image.size) > _MAX_SIDE:
            small = image.copy()
            small.thumbnail((_MAX_SIDE, _MAX_SIDE), reducing_gap=2)
        small.save(buffer, "PNG" if max(small.size) <= _SMALL else "JPEG", quality=88)
        return cls(buffer.getvalue(), image.size)

    def open(self) -> Image.Image:
        """Return the copy as an RGB image."""
        return Image.open(BytesIO(self.content)).convert("RGB")

    def scale(self) -> tuple[float, float]:
        """Return the copy's width and height as fractions of the image's."""
        width, height = Image.open(BytesIO(self.content)).size
        return width / self.original[0], height / self.original[1]


def scaled(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask (H, W) at another size (width, height); every pixel keeps a value of the mask."""
    rows = (np.arange(size[1]) + 0.5) * mask.shape[0] / size[1]
    columns = (np.arange(size[0]) + 0.5) * mask.shape[1] / size[0]
    found: np.ndarray = mask[rows.astype(int)[:, None], columns.astype(int)]
    return found


def prediction(image: Image.Image | None, bars: Sequence[Bar], note: str) -> str:
    """Return an image with bars and a note beside it.

    Args:
        image: RGB, with everything drawn on it; one of at most 64 pixels is enlarged. None to show the bars alone.
        bars: classes or objects, in the order to be shown.
        note: what else there is to say; "" for nothing.
    """
    source = width = None
    if image is not None:
        is_small = max(image.size) <= _SMALL
        source = page.data_url(image, "PNG" if is_small else "JPEG")
        width = round(_ENLARGED * image.width / max(image.size)) if is_small else None
    shown = [(shortened(printable(bar.name), _MAX_NAME), f"{100 * min(max(bar.share, 0), 1):.1f}%", bar.colour) for bar in bars]
    return page.part("prediction", "notebook", source=source, width=width, bars=shown, note=printable(note))


def text(words: str) -> str:
    """Return text on its own."""
    return prediction(None, [], words)


def gallery(parts: Sequence[tuple[str, str]], more: int) -> str:
    """Return several predictions, each under its image's name: pairs of name and HTML, and how many more there are."""
    return page.part("gallery", "notebook", parts=[(printable(name), html) for name, html in parts], more=more)


def result(
    title: str, lead: str, cards: Mapping[str, str], svgs: Sequence[str] = (), done: float | None = None, lines: Sequence[str] = ()
) -> str:
    """Return numbers and curves.

    Args:
        title: what they are of.
        lead: a line under it.
        cards: what to write beside each number, to the number, as `metrics.cards` returns them.
        svgs: drawings of `plots`.
        done: 0 to 1: the part of the work that is done, as a bar; None for no bar.
        lines: messages under it all.
    """
    drawn = [_alone(page.themed(svg)) for svg in svgs]
    share = None if done is None else f"{100 * done:.1f}%"
    return page.part("result", "notebook", title=printable(title), lead=printable(lead), cards=cards, svgs=drawn, done=share, lines=lines)


def _alone(svg: str) -> str:
    """Return a drawing whose parts have names that no other drawing has."""
    number = next(_drawings)
    return _IDS.sub(rf"\g<1>d{number}-", svg).replace("<svg ", '<svg style="width: 100%; height: auto" ', 1)
