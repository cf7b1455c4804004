"""Rows of small images with a caption under each, as one image."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from convnext.report import palette
from convnext.report.drawing import Font
from convnext.report.fonts import font_for
from convnext.text import printable, shortened

_GAP, _FONT_SIZE, _LINE = 8, 12, 18  # pixels
_MAX_TITLE = 80  # characters


@dataclass(frozen=True, eq=False)
class SheetRow:
    """Tiles side by side, each an image with a line under it, and a title over them."""

    title: str
    tiles: Sequence[tuple[Image.Image, str]]


def sheet(rows: Sequence[SheetRow], side: int = 112) -> Image.Image:
    """Return the rows under each other, RGBA on a transparent ground.

    Every image is scaled to a square of `side` pixels; enlarged ones show their pixels.
    """
    columns = max(len(row.tiles) for row in rows)
    titles = [shortened(printable(row.title), _MAX_TITLE) for row in rows]
    font = font_for(_FONT_SIZE, [*titles, *(printable(text) for row in rows for _, text in row.tiles)])
    title_width = max(map(font.getlength, titles))
    height = _LINE + side + _LINE + _GAP
    whole = Image.new(
        "RGBA", (round(max(columns * (side + _GAP), title_width + _GAP)) + _GAP, len(rows) * height + _GAP), palette.TRANSPARENT
    )
    pen = ImageDraw.Draw(whole)
    for i, row in enumerate(rows):
        top = _GAP + i * height
        pen.text((_GAP, top), titles[i], palette.GREY, font)
        for j, (image, caption) in enumerate(row.tiles):
            left, tile = _GAP + j * (side + _GAP), fit(image, side)
            whole.paste(tile, (left + (side - tile.width) // 2, top + _LINE + (side - tile.height) // 2))
            pen.text((left, top + _LINE + side + 2), _fitted(printable(caption), side, font), palette.GREY, font)
    return whole


def fit(image: Image.Image, side: int) -> Image.Image:
    """Return the image with a long side of so many pixels, in its proportions; enlarged without smoothing, so that its pixels show."""
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def _fitted(text: str, width: int, font: Font) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
