"""Boxes, masks and class names drawn over an image."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont
from PIL.Image import Image, Resampling
from torch import Tensor

from convnext.report import palette
from convnext.report.fonts import font_for
from convnext.text import printable, shortened

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_MIN_SIDE = 400  # pixels of the long side: smaller images are enlarged, so that names are legible
_MAX_NAME = 40  # characters of a name
_OPACITY = 0.45  # of masks
_GAP = 8  # pixels between images side by side


def draw(
    image: Image, objects: Mapping[str, object], classes: Sequence[str], colours: Sequence[tuple[int, int, int]] | None = None
) -> Image:
    """Return a copy of the image with its objects drawn on it; small images come back enlarged by a whole factor.

    Args:
        image: RGB.
        objects: `boxes` (n, 4) as left, top, right, bottom in pixels of the image and `labels` (n,); optionally `masks`, (n, H, W) or
            (n, 1, H, W) or an iterator over single masks, drawn beneath all boxes, `scores` (n,), written beside the names, and
            `iscrowd` (n,). That is `Objects.to_dict()`, or what a detector returns.
        classes: the names of the labels, which also choose the colours.
        colours: red, green and blue, 0 to 255, of each object instead.
    """
    factor = max(1, -(-_MIN_SIDE // max(image.size)))
    labels = [int(label) for label in _values(objects, "labels")]
    colours = [palette.class_colour(label) for label in labels] if colours is None else colours
    if (masks := objects.get("masks")) is not None and labels:
        image = _tinted(image, cast("Iterable[Tensor]", masks), colours)
    canvas = image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    thick = max(2, round(max(canvas.size) / 300))
    texts = _words(objects, labels, classes)
    font = font_for(max(11, round(max(canvas.size) / 38)), texts)
    boxes = [[edge * factor for edge in box] for box in cast("Tensor", objects["boxes"]).tolist()]
    for (left, top, right, bottom), colour in zip(boxes, colours, strict=True):
        if right > left and bottom > top:  # Pillow refuses other boxes, which an untrained detector can give
            pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=thick)
    for box, words, colour in zip(boxes, texts, colours, strict=True):
        _write(pen, words, box, colour, font, canvas.size)
    return canvas


def side_by_side(images: Sequence[Image]) -> Image:
    """Return images beside each other, top edges aligned, RGBA with a transparent gap between them."""
    width = sum(image.width + _GAP for image in images) - _GAP
    sheet = PIL.Image.new("RGBA", (width, max(image.height for image in images)), palette.TRANSPARENT)
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + _GAP
    return sheet


def _tinted(image: Image, masks: Iterable[Tensor], colours: Sequence[tuple[int, int, int]]) -> Image:
    pixels = np.asarray(image).astype(np.float32)
    for mask, colour in zip(masks, colours, strict=True):
        shown = mask.reshape(mask.shape[-2:]).cpu().numpy() > 0
        pixels[shown] += (np.array(colour, dtype=np.float32) - pixels[shown]) * _OPACITY
    return PIL.Image.fromarray(pixels.round().astype(np.uint8))


def _values(objects: Mapping[str, object], key: str) -> list[float]:
    return cast("list[float]", cast("Tensor", objects[key]).tolist())


def _words(objects: Mapping[str, object], labels: list[int], classes: Sequence[str]) -> list[str]:
    words = [shortened(printable(classes[label]), _MAX_NAME) for label in labels]
    if "scores" in objects:
        words = [f"{word} {score:.0%}" for word, score in zip(words, _values(objects, "scores"), strict=True)]
    if "iscrowd" in objects:
        words = [f"{word} (crowd)" if crowd else word for word, crowd in zip(words, _values(objects, "iscrowd"), strict=True)]
    return words


def _write(pen: ImageDraw.ImageDraw, words: str, box: list[float], colour: tuple[int, int, int], font: Font, size: tuple[int, int]) -> None:
    """Write a name on its colour, above the box where there is room, else inside it, always within the image."""
    left, top, right, bottom = pen.textbbox((0, 0), words, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0, box[0]), max(0, size[0] - width))
    y = box[1] - height if box[1] >= height else min(max(0, box[1]), max(0, size[1] - height))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    pen.text((x + 3 - left, y + 3 - top), words, fill=palette.text_on(colour), font=font)
