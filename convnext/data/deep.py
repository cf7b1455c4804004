"""Images of more than 8 bits a channel, whose numbers get their scale when an image is prepared for a network.

Such files (16-bit PNG, float TIFF, CT) do not say which of their numbers is white. `data.range` says it for the whole dataset, and
travels with the weights in their preprocessing, so that no image is ever scaled by what it holds itself.
"""

import sys
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, TiffImagePlugin

from convnext.data.orientation import orientation_of, turned, upright
from convnext.errors import CorruptImageError

if TYPE_CHECKING:
    from torch import Tensor

Range = float | tuple[float, float]  # the number that is white, or those that are black and white

_BITS_PER_SAMPLE, _PLANES, _EXTRA_CHANNELS, _SAMPLE_FORMAT = 258, 284, 338, 339  # tags of TIFF


@dataclass(frozen=True, eq=False)
class DeepImage:
    """An image of more than 8 bits a channel, upright, with the file's own numbers."""

    values: np.ndarray  # (C, H, W), C = 1 or 3, of any type of number but uint8
    name: str
    white: float  # the number that is white unless a range says otherwise
    alpha: np.ndarray | None = None  # float32 (H, W), 0 where it is transparent, to 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.values.shape

    @property
    def height(self) -> int:
        """In pixels."""
        return self.values.shape[1]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.values.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as PIL's."""
        return self.width, self.height

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the greatest number in it, as int or float."""
        return self.values.min().item(), self.values.max().item()

    def pixels(self, scale: Range | None) -> "Tensor":
        """A float32 (3, H, W) tensor from 0 (black) to 255 (white) that keeps every level; transparent pixels lie over white.

        Args:
            scale: the number that is white, or those that are black and white, and what lies beyond is clipped; None for `white`,
                and a CorruptImageError, with the key to set, where the image does not fit into that.
        """
        import torch

        if scale is None and (reason := misfit(self.values.dtype, *self.limits, self.white)):
            raise CorruptImageError(f"{self.name}: {reason}")
        black, white = (0.0, self.white) if scale is None else scale if isinstance(scale, tuple) else (0.0, scale)
        exact = np.result_type(self.values.dtype, np.float32)  # float64 for 32-bit integers
        levels = ((self.values.astype(exact) - black) * (255 / (white - black))).clip(0, 255).astype(np.float32)
        if self.alpha is not None:
            levels = levels * self.alpha + 255 * (1 - self.alpha)
        return torch.from_numpy(levels if len(levels) == 3 else levels.repeat(3, axis=0))

    def shown(self) -> Image.Image:
        """An 8-bit RGB image to look at, from its own least number (black) to its greatest (white)."""
        low, high = self.limits
        return Image.fromarray(to_bytes(self.pixels((low, high if high > low else low + 1))).permute(1, 2, 0).numpy())


def shown(image: Image.Image | DeepImage) -> Image.Image:
    """An opened image as 8-bit RGB, to look at or to draw on."""
    return image.shown() if isinstance(image, DeepImage) else image


def to_bytes(pixels: "Tensor") -> "Tensor":
    """Pixels from 0 to 255 rounded to uint8."""
    import torch

    return pixels.round().clamp(0, 255).to(torch.uint8) if pixels.is_floating_point() else pixels


def misfit(kind: np.dtype[Any], low: float, high: float, white: float) -> str:
    """Why numbers of that type from `low` to `high` can't be taken as 0 (black) to `white`, with the key to set; "" if they can."""
    if low < 0:
        return f"values from {_text(low)} to {_text(high)}: set {key_for(low, high)} (black, white) to train on such images"
    if high > white:
        return f"values up to {_text(high)}, beyond {_text(white)}: set {key_for(low, high)} to train on such images"
    if kind.kind in "iu" and kind != np.uint16 and high <= 255:
        wide = f"integers of {8 * kind.itemsize} bits up to {_text(high)} do not say what is white"
        return f"{wide}: save them with 8 bits (or as uint8), or set data.range=255 to train on such images"
    return ""


def key_for(low: float, high: float) -> str:
    """The override that makes `high`, and where it is negative `low`, the limits of the scale."""
    return f"data.range=[{_text(low)},{_text(high)}]" if low < 0 else f"data.range={_text(high)}"


def _text(value: float) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def deep(values: np.ndarray, name: str, white: float | None = None, alpha: np.ndarray | None = None) -> DeepImage:
    """A DeepImage of an array (C, H, W). Raises CorruptImageError if some of it are no finite numbers."""
    values = values.astype(np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f" and (bad := int((~np.isfinite(values)).sum())):
        raise CorruptImageError(f"{name}: {bad} of its {values.size} numbers are NaN or infinite")
    return DeepImage(values, name, white or (1.0 if values.dtype.kind == "f" else 65535), alpha)


def deep_grey(image: Image.Image, name: str) -> DeepImage:
    """A DeepImage of a loaded PIL image of mode I;16, I or F."""
    values, transparent = np.asarray(upright(image))[None], image.info.get("transparency")
    tags: Any = getattr(image, "tag_v2", {})
    if image.format == "PPM" and image.mode == "I":
        values = values.astype(np.uint16)  # Pillow scales these to 65535 by what the file says is white
    elif image.mode == "I" and tags.get(_BITS_PER_SAMPLE) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow reads them with a sign
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else None
    return deep(values, name, white, None if transparent is None else (values[0] != transparent).astype(np.float32))


def deep_colour(image: Image.Image, name: str) -> DeepImage | None:
    """A DeepImage of an opened PIL image of 16-bit colour, or None if it is another; the image stays as it is.

    Pillow itself keeps the upper 8 bits, so nothing can be done once an image is loaded.
    """
    if not _is_deep_colour(image):
        return None
    file: Any = image.fp  # type: ignore[attr-defined]
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    values = _READERS[str(image.format)](content, image)
    alpha = None
    if len(values) in (2, 4):
        values, opacity = values[:-1], values[-1]
        alpha = opacity / np.float32(65535) if image.format == "PNG" or declares_alpha(image) else None
    elif (transparent := image.info.get("transparency")) is not None:
        alpha = (values != np.reshape(transparent, (-1, 1, 1))).any(0).astype(np.float32)
    return deep(values, name, alpha=alpha)


def _is_deep_colour(image: Any) -> bool:
    tiles = getattr(image, "tile", [])  # what is still to be decoded, and as what
    if not tiles or image.format not in _READERS or image.mode not in ("RGB", "RGBA"):
        return False
    how = tiles[0].args
    if image.format == "PPM":
        return isinstance(how, tuple) and isinstance(how[-1], int) and how[-1] > 255
    if (
        image.format == "TIFF"
        and image.tag_v2.get(_BITS_PER_SAMPLE, (8,))[0] == 16
        and (image.tag_v2.get(_PLANES) == 2 or "RGBa" in how[0])
    ):
        raise ValueError("16-bit TIFF with its channels in separate planes, or multiplied by its opacity: save it as PNG")
    return ";16" in str(how)


def declares_alpha(image: Image.Image) -> bool:
    """Whether a TIFF says that its fourth channel is opacity; where it doesn't, satellites' files have infrared there."""
    return _EXTRA_CHANNELS in getattr(image, "tag_v2", {})


def _upright_png(content: bytes, _: Any) -> np.ndarray:
    """The channels of a 16-bit PNG, uint16 (C, H, W)."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    with Image.open(BytesIO(content), formats=("PNG",)) as again:
        orientation = orientation_of(again)
    pixels = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return turned(pixels.view(torch.int16), orientation).numpy().view(np.uint16)  # few operations know uint16


def _ppm(content: bytes, opened: Any) -> np.ndarray:
    """The channels of a 16-bit PPM, uint16 (C, H, W), scaled to 65535 as Pillow scales grey."""
    codec, _, start, (_, white) = opened.tile[0]
    count = 3 * opened.width * opened.height
    is_text = codec == "ppm_plain"
    values = np.array(content[start:].split()[:count], np.int64) if is_text else np.frombuffer(content, ">u2", count, start)
    return (values.reshape(opened.height, opened.width, 3).transpose(2, 0, 1) * (65535 / white)).round().astype(np.uint16)


def _upright_tiff(content: bytes, opened: Any) -> np.ndarray:
    """The channels of a TIFF of 16-bit colour, uint16 (C, H, W).

    Pillow takes the upper byte of each number. Told the other order of bytes it takes the lower.
    """
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    halves = []
    for swap in (False, True):
        with Image.open(BytesIO(content), formats=("TIFF",)) as image:
            image.seek(opened.tell())
            if swap:
                tiles: Any = image.tile
                orders = [tile.args[0][:-1] + other[tile.args[0][-1]] for tile in tiles]
                image.tile = [tile._replace(args=(order, *tile.args[1:])) for tile, order in zip(tiles, orders, strict=True)]
            halves.append(np.asarray(image).astype(np.uint16))
    return (halves[0] << 8 | halves[1]).transpose(2, 0, 1)


_READERS = {"PNG": _upright_png, "TIFF": _upright_tiff, "PPM": _ppm}


def describe_tiff(content: bytes) -> str:
    """What is in a TIFF that Pillow can't read, with the remedy; "" if it is none."""
    if content[:4] not in (b"II*\0", b"MM\0*"):
        return ""
    file, tags = BytesIO(content), TiffImagePlugin.ImageFileDirectory_v2(content[:8])
    file.seek(tags.next)
    tags.load(file)
    bits, kind = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLE_FORMAT, (1,))[0]
    what = {1: "integers", 2: "signed integers", 3: "floats"}.get(kind, "numbers")
    return f"TIFF of {len(bits)} channels, {bits[0]}-bit {what}, which can't be read: save grey, or RGB with 8 or 16 bits"


class Depths:
    """What the deep images of a dataset hold: `add` every image that is read, then ask for `problems`."""

    def __init__(self) -> None:
        self.found: list[tuple[np.dtype[Any], float, float, float]] = []

    def add(self, image: Any) -> None:
        """Note what an opened image holds, if it has more than 8 bits."""
        if isinstance(image, DeepImage):
            self.found.append((image.values.dtype, *image.limits, image.white))

    def problems(self) -> list[str]:
        """For each type of number, a line with the greatest value and the key to set, where the default scale does not suit it."""
        kinds = list(dict.fromkeys(kind for kind, *_ in self.found))
        lines = []
        for kind in kinds:
            rows = [row[1:] for row in self.found if row[0] == kind]
            low, high, white = min(row[0] for row in rows), max(row[1] for row in rows), min(row[2] for row in rows)
            if misfit(kind, low, high, white) or high <= white / 2:
                many = f"{len(rows)} images have" if len(rows) > 1 else "1 image has"
                what = f"the values go from {_text(low)} to {_text(high)}" if low < 0 else f"the largest value is {_text(high)}"
                of = f" ({kind})" if len(kinds) > 1 else ""
                lines.append(f"{many} more than 8 bits{of}, {what}: set {key_for(low, high)}")
        if len(kinds) > 1:
            lines.append(f"images of more than 8 bits hold {' and '.join(map(str, kinds))}, and data.range is one for all: save them alike")
        return lines


def remarks(source: Any, scale: Range | None, most: int = 8) -> list[str]:
    """What `Depths` finds in some images of a source, evenly spread, where no range is given: to be reported before a run."""
    depths = Depths()
    for index in range(0, len(source) if scale is None else 0, max(1, -(-len(source) // most))):
        try:
            depths.add(source.read(index))
        except CorruptImageError:
            continue  # counted when it is trained on
    return [f"of some images: {line}; `convnext data check` reads all" for line in depths.problems()]
