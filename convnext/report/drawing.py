"""Boxes, masks and class names drawn over an image."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont
from PIL.Image import Image, Resampling

from convnext.text import printable, shortened

# Kelly's colours of greatest contrast (1965), less white, black, grey and the two palest; classes beyond the last begin anew.
_PALETTE = (
    (243, 195, 0), (135, 86, 146), (243, 132, 0), (161, 202, 241), (190, 0, 50), (0, 136, 86), (230, 143, 172), (0, 103, 165),
    (249, 147, 121), (96, 78, 151), (246, 166, 0), (179, 68, 108), (141, 182, 0), (136, 45, 23), (101, 69, 34), (226, 88, 34), (43, 61, 38),
)  # fmt: skip
_SHORTEST = 400  # pixels of the long side: smaller images are enlarged, for names to be legible
_LONGEST = 40  # characters of a name
_OPACITY = 0.45  # of masks


def draw(image: Image, objects: Mapping[str, Any], classes: Sequence[str]) -> Image:
    """A copy of the image with its objects; small images come back enlarged by a whole factor.

    Args:
        image: RGB.
        objects: `boxes` (n, 4) as left, top, right, bottom in its pixels and `labels` (n,); where there are, `masks` (n, H, W) or
            (n, 1, H, W) or one by one as an iterator gives them, drawn beneath all boxes, `scores` (n,), written beside the names,
            and `iscrowd` (n,). That is `Objects.to_dict()`, or what a detector returns.
        classes: the names of the labels, which also choose the colours.
    """
    factor = max(1, -(-_SHORTEST // max(image.size)))
    labels = objects["labels"].tolist()
    colours = [_PALETTE[label % len(_PALETTE)] for label in labels]
    if (masks := objects.get("masks")) is not None and len(labels):
        image = _tinted(image, masks, colours)
    canvas = image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    thick = max(2, round(max(canvas.size) / 300))
    font = ImageFont.load_default(max(11, round(max(canvas.size) / 38)))
    boxes = [[edge * factor for edge in box] for box in objects["boxes"].tolist()]
    for (left, top, right, bottom), colour in zip(boxes, colours, strict=True):
        if right > left and bottom > top:  # Pillow refuses others, which an untrained detector can give
            pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=thick)
    for box, words, colour in zip(boxes, _words(objects, labels, classes), colours, strict=True):
        _write(pen, words, box, colour, font, canvas.size)
    return canvas


def _tinted(image: Image, masks: Iterable[Any], colours: list[tuple[int, int, int]]) -> Image:
    pixels = np.asarray(image).astype(np.float32)
    for mask, colour in zip(masks, colours, strict=True):
        shown = mask.reshape(mask.shape[-2:]).cpu().numpy() > 0
        pixels[shown] += (np.array(colour, dtype=np.float32) - pixels[shown]) * _OPACITY
    return PIL.Image.fromarray(pixels.round().astype(np.uint8))


def _words(objects: Mapping[str, Any], labels: list[int], classes: Sequence[str]) -> list[str]:
    words = [shortened(printable(classes[label]), _LONGEST) for label in labels]
    if "scores" in objects:
        words = [f"{word} {score:.0%}" for word, score in zip(words, objects["scores"].tolist(), strict=True)]
    if "iscrowd" in objects:
        words = [f"{word} (crowd)" if crowd else word for word, crowd in zip(words, objects["iscrowd"].tolist(), strict=True)]
    return words


def _write(pen: Any, words: str, box: list[float], colour: tuple[int, int, int], font: Any, size: tuple[int, int]) -> None:
    """A name on its colour, above the box where there is room, else inside it; never over the border."""
    left, top, right, bottom = pen.textbbox((0, 0), words, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0, box[0]), max(0, size[0] - width))
    y = box[1] - height if box[1] >= height else min(max(0, box[1]), max(0, size[1] - height))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    pen.text((x + 3 - left, y + 3 - top), words, fill="black" if luminance > 140 else "white", font=font)
