"""Opening image files with Pillow: the formats, and the largest image, for the whole package."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from convnext.data.formats import heif, tiff
from convnext.errors import first_line

# The supported formats, by Pillow's names, each with the endings of its files. For none of them does Pillow run another program, as it
# does for EPS (Ghostscript).
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
}
FORMATS = tuple(_ENDINGS)  # that Pillow itself reads
ENDINGS = frozenset(ending for endings in (*_ENDINGS.values(), heif.ENDINGS) for ending in endings)


@dataclass(frozen=True)
class Reading:
    """How the images of a dataset, or those for a network, are opened."""

    channels: int = 3  # 3 for RGB, 1 for grey, others for images with as many bands
    max_pixels: int | None = None  # of an image; None for Pillow's limit, some 89 million

    @property
    def limit(self) -> float:
        """The largest number of pixels."""
        return self.max_pixels or Image.MAX_IMAGE_PIXELS or float("inf")

    @property
    def max_numbers(self) -> int:
        """The largest number of numbers in an image: those of an RGB image of as many pixels."""
        return int(min(3 * self.limit, 1 << 62))


AS_RGB = Reading()
ANY_SIZE = Reading(max_pixels=1 << 60)  # of images whose size is checked elsewhere


@contextmanager
def opened(source: str | Path | BytesIO, how: Reading = AS_RGB) -> Iterator[Image.Image]:
    """Open a file with Pillow, in one of the formats of the package, without decoding it.

    Raises ValueError, with the key that admits it, for an image beyond the limit, UnidentifiedImageError for another format, and any
    exception, as decoders do, for a damaged file.
    """
    with quiet(), _open_unlimited(source) as image:
        if image.width * image.height > how.limit:
            raise ValueError(tiff.too_large(*image.size))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Else it would ask for Pillow's limit again when it is decoded.
            image.im = Image.core.new(image.mode, image._tile_size)  # type: ignore[attr-defined]
        yield image


def _open_unlimited(source: str | Path | BytesIO) -> Image.Image:
    """Open a file as `Image.open` does, but without its limit of pixels, which is one for the whole process."""
    Image.preinit()  # of the most usual formats: to import the code of all takes Pillow 20 ms
    file = source if isinstance(source, BytesIO) else open(source, "rb")  # noqa: SIM115  # the image closes it
    try:
        head = file.read(32)
        file.seek(0)
        if heif.is_heif(head):
            return _owning(heif.open_heif(file), file is not source)
        for kind in FORMATS:
            if kind not in Image.OPEN:
                Image.init()
            factory, accept = Image.OPEN[kind]
            if accept is not None and accept(head[:16]) is not True:  # text says that Pillow was built without the format
                continue
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):
                return _owning(factory(file, "" if isinstance(source, BytesIO) else str(source)), file is not source)
        raise UnidentifiedImageError("not an image of any known format")
    except BaseException as error:
        if file is not source:
            file.close()
        if isinstance(error, Image.DecompressionBombError):  # WebP's decoder asks for Pillow's limit itself
            raise ValueError(f"{first_line(error)} It is Pillow's for WebP: save such an image as JPEG or PNG") from error
        raise


def _owning(image: Image.Image, owns: bool) -> Image.Image:
    """Return the image, which closes its file when it is closed if it `owns` it."""
    image._exclusive_fp = owns  # type: ignore[attr-defined]
    return image


@contextmanager
def quiet() -> Iterator[None]:
    """Within, ignore Pillow's warnings about odd metadata; its warning of a decompression bomb is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
