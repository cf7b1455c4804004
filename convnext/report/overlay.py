"""Class masks drawn over their images, alone or beside the ground truth."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convnext.text import printable, shortened

IGNORED = 255
_COLOURS = 255  # as many as a mask of bytes has classes
_STRIPE = 6  # pixels of a light or dark stripe where nothing is labelled
_LONGEST = 40  # characters of a name in the legend
_FONT_SIZE, _LINE, _GAP = 14, 24, 8  # of text, in pixels
_NARROWEST = 360  # sheet, so that a legend has room under a small image


def overlay(image: Image.Image, mask: Any, classes: Sequence[str], alpha: float = 0.6) -> Image.Image:
    """An image with the colours of its mask laid over it, and under it a legend of the classes that occur, the largest first.

    Args:
        image: RGB, W x H.
        mask: integer class indices (H, W), an array or a tensor on the CPU; 255, ignored, is drawn as grey stripes.
        classes: their names.
        alpha: how much the colours cover.
    """
    return _sheet([("", coloured(image, mask, alpha))], [np.asarray(mask)], classes)


def side_by_side(image: Image.Image, truth: Any, predicted: Any, classes: Sequence[str], alpha: float = 0.6) -> Image.Image:
    """The image, its ground truth and what was predicted, with one legend; arguments as for `overlay`."""
    sides = [("image", image), ("ground truth", coloured(image, truth, alpha)), ("predicted", coloured(image, predicted, alpha))]
    return _sheet(sides, [np.asarray(truth), np.asarray(predicted)], classes)


def coloured(image: Image.Image, mask: Any, alpha: float = 0.6) -> Image.Image:
    """An image with the colours of its mask laid over it and the borders of classes drawn, of the same size."""
    mask = np.asarray(mask)
    rows, columns = np.indices(mask.shape, sparse=True)
    stripes = np.where((rows + columns) // _STRIPE % 2, 150, 60)[..., None]
    is_ignored = mask == IGNORED
    colours = np.where(is_ignored[..., None], stripes, palette()[mask])
    pixels = np.asarray(image.convert("RGB")) * (1 - alpha) + colours * alpha
    is_border = np.zeros(mask.shape, bool)
    is_border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    is_border[1:] |= mask[1:] != mask[:-1]
    pixels[is_border] = 255
    return Image.fromarray(pixels.round().astype(np.uint8))


@functools.cache
def palette() -> np.ndarray:
    """256 colours, uint8 (256, 3), for ever the same: each as unlike all before it as can be, the last, for 255, grey.

    Differences are measured in whole numbers (Riemersma's weighted RGB distance), so that no rounding changes the choice. Very
    dark, very light and greyish colours are left out: they are lost in photographs, or look like what is ignored.
    """
    levels = np.array([0, 40, 85, 130, 170, 210, 255])
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    light = grid @ [2, 5, 1]
    grid = grid[(light > 8 * 45) & (light < 8 * 225) & (np.ptp(grid, axis=1) >= 80)]
    chosen = [int(np.abs(grid - [0, 130, 255]).sum(1).argmin())]
    nearest = np.full(len(grid), np.iinfo(np.int64).max)
    while len(chosen) < _COLOURS:
        nearest = np.minimum(nearest, _distance(grid, grid[chosen[-1]]))
        chosen.append(int(nearest.argmax()))
    return np.concatenate([grid[chosen], [[105, 105, 105]]]).astype(np.uint8)


def _distance(colours: np.ndarray, one: np.ndarray) -> np.ndarray:
    red, green, blue = ((colours - one) ** 2).T
    mean = colours[:, 0] + one[0]  # twice the mean of the red levels
    return (1024 + mean) * red + 2048 * green + (1534 - mean) * blue


def _sheet(sides: Sequence[tuple[str, Image.Image]], masks: Sequence[np.ndarray], classes: Sequence[str]) -> Image.Image:
    """Images side by side, each under its title, and below them a legend of what the masks hold."""
    font = ImageFont.load_default(_FONT_SIZE)
    cell = max(side.width if not title else max(side.width, int(font.getlength(title))) for title, side in sides) + _GAP
    top, height = _LINE if sides[0][0] else 0, sides[0][1].height
    width = max(len(sides) * cell - _GAP, _NARROWEST)
    entries, bottom = _legend(masks, classes, width, font)
    sheet = Image.new("RGB", (width, top + height + _GAP + bottom), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, side) in enumerate(sides):
        draw.text((i * cell, 2), title, "black", font)
        sheet.paste(side, (i * cell, top))
    for label, name, x, y in entries:
        sheet.paste(_swatch(label), (x + 2, y + top + height + _GAP))
        draw.text((x + _LINE, y + top + height + _GAP), name, "black", font)
    return sheet


def _legend(masks: Sequence[np.ndarray], classes: Sequence[str], width: int, font: Any) -> tuple[list[tuple[int, str, int, int]], int]:
    """Label, name and place of each class that the masks hold, in lines of at most `width`, and the height of all lines."""
    counts = np.sum([np.bincount(mask.ravel(), minlength=IGNORED + 1) for mask in masks], axis=0)
    entries: list[tuple[int, str, int, int]] = []
    x = y = 0
    for label in sorted(np.flatnonzero(counts).tolist(), key=lambda label: (label == IGNORED, -counts[label])):
        if len(classes) <= label < IGNORED:
            raise ValueError(f"the mask holds the class {label}, of {len(classes)} classes")
        name = "ignored" if label == IGNORED else shortened(printable(classes[label]), _LONGEST)
        step = _LINE + int(font.getlength(name)) + 2 * _GAP
        if x and x + step > width:
            x, y = 0, y + _LINE
        entries.append((label, name, x, y))
        x += step
    return entries, y + _LINE


def _swatch(label: int) -> Image.Image:
    return coloured(Image.new("RGB", (_FONT_SIZE + 2,) * 2), np.full((_FONT_SIZE + 2,) * 2, label), alpha=1)
