"""Images composed of scikit-learn's handwritten digits, with exact boxes and masks: detection and segmentation data without files.

One to six digits of many sizes and dark colours lie on a bright, textured ground; later digits cover earlier ones. Training scenes
consist of the training digits, validation scenes of the held-out digits.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from convnext.data.annotations.objects import ImageObjects
from convnext.data.sources.digits import CLASSES, Digits
from convnext.errors import ConvnextError, UsageError, nearest

PARTS = {"train": 24000, "val": 200}  # number of scenes of each part; a scene is composed when it is read
SIZE = 128  # pixels a side
_MAX_DIGITS = 6
_HEIGHTS = (34 / 128, 72 / 128)  # smallest and largest height of a digit, as a fraction of the scene's
_MIN_PIXELS = 40  # visible pixels of each digit
_MIN_VISIBLE = 0.7  # visible fraction of each digit's ink
_INK, _FRINGE = 0.45, 0.175  # from this grey on, a pixel is ink; from this grey on, it covers the digits beneath
_ATTEMPTS = 8  # tries to place a digit so that all digits stay visible; after them the scene does without it


@dataclass(frozen=True)
class Scene:
    """A composed image with its digits."""

    pixels: np.ndarray  # uint8 (size, size, 3), RGB
    masks: np.ndarray  # uint8 (n, size, size): the visible ink of each digit
    labels: np.ndarray  # int64 (n,): the digits, 0 to 9


class Scenes:
    """Scenes by position, each a function of (part, seed, index) alone.

    Args:
        part: "train" or "val".
        count: the number of scenes; by default that of `PARTS`.
        size: pixels a side; digits grow with it.
        seed: another seed gives other scenes.
    """

    def __init__(self, part: str, count: int | None = None, size: int = SIZE, seed: int = 0) -> None:
        self.part, self.size, self.seed = part, size, seed
        self.count = PARTS[part] if count is None else count
        self.classes, self.has_masks = CLASSES, True
        self.category_ids: dict[str, int] = {}
        self.skipped: list[str] = []
        self.remarks: list[str] = []
        self.heights = self.widths = np.full(self.count, size)

    def __len__(self) -> int:
        return self.count

    def _scene(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return compose(self.part, self.seed, index, self.size)

    def read(self, index: int) -> Image:
        """Return the image at a position."""
        return PIL.Image.fromarray(self._scene(index).pixels)

    def pixels(self, index: int) -> Tensor:
        """Return the image as a uint8 (3, H, W) tensor with memory of its own."""
        return torch.tensor(self._scene(index).pixels).permute(2, 0, 1)

    def target(self, index: int) -> ImageObjects:
        """Return the digits of a scene, covered ones before those that cover them."""
        scene = self._scene(index)
        boxes = [_box(mask) for mask in scene.masks]
        return ImageObjects(
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(scene.labels),
            masks=torch.tensor(scene.masks),
            iscrowd=torch.zeros(len(boxes), dtype=torch.bool),
            area=torch.tensor(scene.masks.sum((1, 2), dtype=np.float32)),
            image_id=index,
        )

    def encoded_target(self, index: int) -> ImageObjects:
        """Return `target(index)`: masks of scenes are small."""
        return self.target(index)

    def objects_by_class(self) -> list[int] | None:
        """Return None: scenes are composed when they are read."""
        return None

    def semantic(self, index: int) -> Tensor:
        """Return the class of each pixel, uint8 (H, W): 0 is background, 1 to 10 are the digits 0 to 9."""
        scene = self._scene(index)
        return torch.tensor(((scene.labels + 1).astype(np.uint8)[:, None, None] * scene.masks).sum(0, dtype=np.uint8))

    def name(self, index: int) -> str:
        """Return what reports call the scene: its number."""
        return f"scene {index}"

    key = name

    def label_bytes(self, index: int) -> bytes:
        """Return no bytes: a scene's objects are a function of its number, so they can't change."""
        return b""


def open_scenes(where: str, classes: Sequence[str] | None = None, keep_empty: bool = True) -> Scenes:
    """Return the images of `scenes:train` or `scenes:val`. None is empty, so `keep_empty` makes no difference.

    Raises UsageError for another part, and ConvnextError if `classes`, those of a network, are not the ten digits.
    """
    part = where.removeprefix("scenes:")
    if part not in PARTS:
        raise UsageError(f"unknown dataset {where!r}{nearest(where, [f'scenes:{name}' for name in PARTS])}")
    source = Scenes(part)
    if classes is not None and list(classes) != source.classes:
        raise ConvnextError(f"the classes of {where} are {', '.join(source.classes)}, not the network's {', '.join(classes)}")
    return source


@functools.lru_cache(maxsize=8)  # an image and its objects are read one after the other
def compose(part: str, seed: int, index: int, size: int) -> Scene:
    """Return the scene of that part, seed and number. Callers share its arrays and must not write to them."""
    rng = np.random.Generator(np.random.PCG64([seed, list(PARTS).index(part), index]))
    canvas = _ground(rng, size)
    owners = np.zeros((size, size), dtype=np.uint8)  # the digit, counted from 1, that is visible at each pixel
    labels: list[int] = []
    inks: list[int] = []  # ink pixels of each digit
    visible: list[int] = []  # those of them that are visible
    for _ in range(rng.integers(1, _MAX_DIGITS + 1)):
        for _ in range(_ATTEMPTS):
            label, grey = _digit(rng, part, size)
            height, width = grey.shape
            top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
            window = slice(top, top + height), slice(left, left + width)
            ink, covered = grey >= _INK, grey >= _FRINGE
            hidden = np.bincount(owners[window][covered], minlength=len(labels) + 1)[1:].tolist()
            after = [seen - under for seen, under in zip(visible, hidden, strict=True)]
            drawn = int(ink.sum())
            if all(seen >= max(_MIN_PIXELS, _MIN_VISIBLE * of) for seen, of in zip([*after, drawn], [*inks, drawn], strict=True)):
                colour = rng.integers(0, 100, 3)
                # A bright rim: without it, crossing strokes of two digits merge.
                _paint(canvas[window], 255, np.clip((grey - 0.1) / 0.15, 0, 0.7))
                _paint(canvas[window], colour, np.clip((grey - 0.3) / 0.3, 0, 1))
                labels.append(label)
                owners[window][covered] = 0
                owners[window][ink] = len(labels)
                inks, visible = [*inks, drawn], [*after, drawn]
                break
    masks = (owners == np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None]).astype(np.uint8)
    return Scene(canvas, masks, np.array(labels, dtype=np.int64))


def _paint(area: np.ndarray, colour: np.ndarray | int, alpha: np.ndarray) -> None:
    """Blend a colour into an area, in place. Steep ramps of `alpha` keep strokes sharp although enlarging has blurred them."""
    area[:] = area + (colour - area.astype(np.float32)) * alpha[..., None]


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return clouds of three sizes around one bright colour, uint8 (size, size, 3)."""
    clouds = np.empty((27, 27, 3), dtype=np.float32)
    clouds[:] = rng.integers(150, 226, 3)
    for cells in (3, 9, 27):
        noise = PIL.Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        clouds += (np.asarray(noise.resize((27, 27), Resampling.BILINEAR)) - np.float32(127.5)) * np.float32(0.14)
    ground = PIL.Image.fromarray(clouds.clip(0, 255).astype(np.uint8)).resize((size, size), Resampling.BILINEAR)
    return np.array(ground)


def _digit(rng: np.random.Generator, part: str, size: int) -> tuple[int, np.ndarray]:
    """Return a digit and the grey of its strokes and their fringe, float32 (height, width) in 0 to 1, cut out tightly."""
    images, labels = _digits(part)
    which = int(rng.integers(len(labels)))
    height = size * np.exp(rng.uniform(*np.log(_HEIGHTS)))
    width = height * rng.uniform(0.85, 1.2)
    # `_digits` adds a margin of one pixel on each side: 10 rows and columns in place of 8.
    box = max(3, round(width * 10 / 8)), max(3, round(height * 10 / 8))
    grey = np.asarray(PIL.Image.fromarray(images[which]).resize(box, Resampling.BICUBIC), dtype=np.float32) / 255
    rows, columns = np.flatnonzero((grey > 0.1).any(1)), np.flatnonzero((grey > 0.1).any(0))
    return int(labels[which]), grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@functools.cache
def _digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the part's digits, uint8 (n, 10, 10) with a margin for strokes to end in, and their labels."""
    digits = Digits(part)
    images = np.stack([np.asarray(digits.read(i))[..., 0] for i in range(len(digits))])
    return np.pad(images, ((0, 0), (1, 1), (1, 1))), np.array([digits.label(i) for i in range(len(digits))])


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
