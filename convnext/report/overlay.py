"""Class masks drawn over their images, alone or beside the ground truth."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from convnext.report import palette
from convnext.report.drawing import Font
from convnext.report.fonts import font_for
from convnext.text import printable, shortened

IGNORED = 255
_STRIPE = 6  # pixels of a light or dark stripe where nothing is labelled
_MAX_NAME = 40  # characters of a name in the legend
_GAP = 8  # pixels
_MIN_FONT, _WIDTHS, _LINE_HEIGHT = 14, 80, 12 / 7  # pixels of text, a sheet's width in text sizes, and a line's height in them
_MIN_WIDTH = 360  # of a sheet, so that a legend has room under a small image
_MIN_NAMED = 160  # pixels of the short side: names would cover too much of smaller images
_LARGE = 0.04  # share of the pixels from which a class has its name on it


def overlay(image: Image.Image, mask: ArrayLike, classes: Sequence[str], alpha: float = 0.6) -> Image.Image:
    """Return an image with the colours of its mask over it, and below it a legend of the classes that occur, the largest first.

    Large classes also have their names on them.

    Args:
        image: RGB, W x H.
        mask: integer class indices (H, W), an array or a tensor on the CPU; 255, ignored, is drawn as grey stripes.
        classes: their names.
        alpha: the opacity of the colours, 0 to 1.

    Returns: RGB on white.
    """
    labels: np.ndarray = np.asarray(mask)
    return _sheet([("", coloured(image, labels, alpha))], [labels], classes, "black").convert("RGB")


def named(image: Image.Image, mask: ArrayLike, classes: Sequence[str], alpha: float = 0.6) -> Image.Image:
    """Return an image, of the same size, with the colours of its mask over it and the names of large classes on them."""
    drawn, labels = coloured(image, mask, alpha), np.asarray(mask)
    _write_names(ImageDraw.Draw(drawn), labels, (0, 0), classes, font_for(max(_MIN_FONT, image.width // _WIDTHS), classes))
    return drawn


def side_by_side(image: Image.Image, truth: ArrayLike, predicted: ArrayLike, classes: Sequence[str], alpha: float = 0.6) -> Image.Image:
    """Return the image, its ground truth and the prediction with one legend, RGBA on a transparent ground; arguments as for `overlay`."""
    masks: list[np.ndarray] = [np.asarray(truth), np.asarray(predicted)]
    drawn = [coloured(image, mask, alpha) for mask in masks]
    return _sheet(list(zip(("image", "ground truth", "predicted"), [image, *drawn], strict=True)), masks, classes, palette.GREY)


def panels(image: Image.Image, truth: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> list[tuple[str, Image.Image]]:
    """Return the image, its ground truth and the prediction with their titles, for a page with one `key`; arguments as for `overlay`."""
    return [
        ("image", image),
        *((title, named(image, mask, classes)) for title, mask in (("ground truth", truth), ("predicted", predicted))),
    ]


def key(masks: Sequence[ArrayLike], classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return name and colour of each class that occurs in the masks, the largest first."""
    labels, _ = _legend([np.asarray(mask) for mask in masks], classes, 1, font_for(_MIN_FONT, classes), 1)
    colours = [*palette.CLASSES, palette.IGNORED]
    return [(name, colours[label]) for label, name, _, _ in labels]


def coloured(image: Image.Image, mask: ArrayLike, alpha: float = 0.6) -> Image.Image:
    """Return an image, of the same size, with the colours of its mask over it and white borders between classes."""
    labels: np.ndarray = np.asarray(mask)
    rows, columns = np.arange(labels.shape[0])[:, None], np.arange(labels.shape[1])
    stripes = np.where((rows + columns) // _STRIPE % 2, 150, 60)[..., None]
    is_ignored = labels == IGNORED
    colours = np.where(is_ignored[..., None], stripes, palette.class_colours()[labels])
    pixels = np.asarray(image.convert("RGB")) * (1 - alpha) + colours * alpha
    is_border = np.zeros(labels.shape, bool)
    is_border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    is_border[1:] |= labels[1:] != labels[:-1]
    pixels[is_border] = 255
    return Image.fromarray(pixels.round().astype(np.uint8))


def _sheet(sides: Sequence[tuple[str, Image.Image]], masks: Sequence[np.ndarray], classes: Sequence[str], ink: str) -> Image.Image:
    """Return images side by side, each under its title, above a legend of the classes in the masks: RGBA on a transparent ground.

    The masks are those of the last images.
    """
    size = max(_MIN_FONT, len(sides) * sides[0][1].width // _WIDTHS)
    font, line = font_for(size, classes), round(_LINE_HEIGHT * size)
    cell = max(side.width if not title else max(side.width, int(font.getlength(title))) for title, side in sides) + _GAP
    top, height = line if sides[0][0] else 0, sides[0][1].height
    width = max(len(sides) * cell - _GAP, _MIN_WIDTH)
    entries, bottom = _legend(masks, classes, width, font, line)
    sheet = Image.new("RGBA", (width, top + height + _GAP + bottom), palette.TRANSPARENT)
    pen = ImageDraw.Draw(sheet)
    for i, (title, side) in enumerate(sides):
        pen.text((i * cell, 2), title, ink, font)
        sheet.paste(side, (i * cell, top))
    for i, mask in enumerate(masks, start=len(sides) - len(masks)):
        _write_names(pen, mask, (i * cell, top), classes, font)
    for label, name, x, y in entries:
        sheet.paste(_swatch(label, size + 2), (x + 2, y + top + height + _GAP))
        pen.text((x + line, y + top + height + _GAP), name, ink, font)
    return sheet


def _legend(
    masks: Sequence[np.ndarray], classes: Sequence[str], width: int, font: Font, line: int
) -> tuple[list[tuple[int, str, int, int]], int]:
    """Return label, name and position (x, y) of each class in the masks, in lines of at most `width`, and the height of all lines."""
    counts = np.sum([np.bincount(mask.ravel(), minlength=IGNORED + 1) for mask in masks], axis=0)
    entries: list[tuple[int, str, int, int]] = []
    x = y = 0
    for label in sorted(np.flatnonzero(counts).tolist(), key=lambda label: (label == IGNORED, -counts[label])):
        if len(classes) <= label < IGNORED:
            raise ValueError(f"the mask holds the class {label}, of {len(classes)} classes")
        name = "ignored" if label == IGNORED else shortened(printable(classes[label]), _MAX_NAME)
        step = line + int(font.getlength(name)) + 2 * _GAP
        if x and x + step > width:
            x, y = 0, y + line
        entries.append((label, name, x, y))
        x += step
    return entries, y + line


def _write_names(pen: ImageDraw.ImageDraw, mask: np.ndarray, corner: tuple[int, int], classes: Sequence[str], font: Font) -> None:
    """Write the names of large classes on a mask that is drawn at `corner` (x, y), where they fit into the class."""
    if min(mask.shape) < _MIN_NAMED:
        return
    counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)
    for label in np.flatnonzero(counts[:IGNORED] >= _LARGE * mask.size).tolist():
        name = shortened(printable(classes[label]), _MAX_NAME)
        left, top, right, bottom = (round(edge) for edge in font.getbbox(name))
        if (at := _room(mask == label, right - left + 2 * _GAP, bottom - top + _GAP)) is not None:
            x, y = corner[0] + at[0] + _GAP - left, corner[1] + at[1] + _GAP // 2 - top
            pen.text((x, y), name, "white", font, stroke_width=2, stroke_fill="black")


def _room(region: np.ndarray, width: int, height: int) -> tuple[int, int] | None:
    """Return the corner (x, y) of the box of that size within a region (H, W) nearest to its centre; None if no box fits."""
    sums = np.pad(region.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    y, x = np.nonzero(inside == width * height)
    if not len(y):
        return None
    rows, columns = np.nonzero(region)
    best = ((y + height / 2 - rows.mean()) ** 2 + (x + width / 2 - columns.mean()) ** 2).argmin()
    return int(x[best]), int(y[best])


def _swatch(label: int, side: int) -> Image.Image:
    return coloured(Image.new("RGB", (side, side)), np.full((side, side), label), alpha=1)
