"""Rows of small images with a caption under each, as one image."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from convnext.text import printable, shortened

_GAP, _FONT_SIZE, _LINE = 8, 12, 18  # pixels
_LONGEST = 80  # characters of a title
_INK, _SOFT = "#1d2733", "#66758a"


@dataclass(frozen=True, eq=False)
class Row:
    """Tiles side by side, each an image with a line under it, and a title over them."""

    title: str
    tiles: Sequence[tuple[Image.Image, str]]


def sheet(rows: Sequence[Row], side: int = 112) -> Image.Image:
    """The rows under each other on white, RGB; every image fits a square of `side` pixels, and small ones show their pixels."""
    font = ImageFont.load_default(_FONT_SIZE)
    columns = max(len(row.tiles) for row in rows)
    titles = [shortened(printable(row.title), _LONGEST) for row in rows]
    title_width = max(map(font.getlength, titles))
    height = _LINE + side + _LINE + _GAP
    whole = Image.new("RGB", (round(max(columns * (side + _GAP), title_width + _GAP)) + _GAP, len(rows) * height + _GAP), "white")
    pen = ImageDraw.Draw(whole)
    for i, row in enumerate(rows):
        top = _GAP + i * height
        pen.text((_GAP, top), titles[i], _INK, font)
        for j, (image, caption) in enumerate(row.tiles):
            left, tile = _GAP + j * (side + _GAP), fit(image, side)
            whole.paste(tile, (left + (side - tile.width) // 2, top + _LINE + (side - tile.height) // 2))
            pen.text((left, top + _LINE + side + 2), _fitted(printable(caption), side, font), _SOFT, font)
    return whole


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image in its proportions, its long side of so many pixels; enlarged without smoothing, so that its pixels are seen."""
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
