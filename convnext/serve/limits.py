"""Limits on requests: bytes, seconds to send them, and pixels of the image in them."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import UnidentifiedImageError
from PIL.Image import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from convnext.data.deep import DeepImage
from convnext.data.formats import arrays, heif, tiff
from convnext.data.formats.opening import ANY_SIZE, opened, quiet
from convnext.data.images import AS_RGB, FORMATS, CorruptImageError, Reading, read_image
from convnext.errors import UsageError
from convnext.serve.bodies import kind_of

_MAX_SCANS = 100  # of a progressive JPEG, each of which takes as long as decoding the whole image; encoders make about ten
_MAX_READS = 50_000  # parts of an image file, each a step of Pillow in Python; encoders write some thousand in the largest
_MAX_PROPORTION = 100  # long side to short: the short one is enlarged to what the network takes, and the long one with it
_ENVELOPE = 4096  # bytes that a multipart form or JSON may take beside its image
_UPLOADS = 16  # of the largest size that memory holds at once; of usual photographs, many more
_HEIC = "a HEIC image, which the service can't read without pillow-heif: send a JPEG, or install pillow-heif where it runs"
CLIENT_GONE = 499  # never received; it separates disconnected clients from failures in the metrics


@dataclass(frozen=True)
class Limits:
    """How much a client may ask of the service."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 25_000_000
    queue: int = 64  # images that wait for one model
    timeout: float = 10.0  # seconds to send a request, and again to be answered
    mask_pixels: int = 400_000_000  # in the boxes of all masks of an answer

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"--timeout {self.timeout}: give a number of seconds, such as 10")


class ByteBudget:
    """The bytes of all requests in memory."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0

    def take(self, size: int) -> None:
        """Count bytes as used. Raises HTTPException (503) if the budget is exceeded."""
        if self.taken + size > self.size:
            raise HTTPException(503, "too many uploads at once", {"Retry-After": "1"})
        self.taken += size


class PixelBudget:
    """The images and pixels that may be decoded at once; further requests wait in the order in which they come.

    An image of more pixels than the budget is decoded alone.
    """

    def __init__(self, images: int, pixels: int) -> None:
        self.images, self.size, self.taken = asyncio.Semaphore(images), pixels, 0
        self._first, self._freed = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def pixels(self, count: int, waiting: Callable[[], AbstractContextManager[None]]) -> AsyncIterator[None]:
        """Hold so many pixels of the budget; `waiting` is entered until they are free."""
        with waiting():
            async with self._first:
                while self.taken and self.taken + count > self.size:
                    self._freed.clear()
                    await self._freed.wait()
                self.taken += count
        try:
            yield
        finally:
            self.taken -= count
            self._freed.set()


def byte_budget(limits: Limits) -> ByteBudget:
    """Return the budget for all request bodies in memory."""
    return ByteBudget(_UPLOADS * max_body(limits, "application/json"))


def max_body(limits: Limits, kind: str) -> int:
    """Return the length in bytes that a body of that content type may have for its image to stay within the limit.

    Base 64 makes four bytes of three, and a tenth more if it is broken into lines or its slashes are escaped.
    """
    return (limits.max_bytes * 22 // 15 if kind == "application/json" else limits.max_bytes) + _ENVELOPE


@asynccontextmanager
async def read_body(request: Request, limits: Limits, budget: ByteBudget) -> AsyncIterator[bytes]:
    """Yield the body of a request, whose bytes count against the budget until the context ends.

    Raises HTTPException as soon as it is too long (413), comes too slowly (408), or exceeds the budget (503).
    """
    longest = max_body(limits, kind_of(request.headers.get("content-type", "")))
    too_long = HTTPException(413, f"an image may have at most {limits.max_bytes} bytes")
    if int(request.headers.get("content-length", 0)) > longest:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.timeout):
            async for chunk in request.stream():
                if len(body) + len(chunk) > longest:
                    raise too_long
                budget.take(len(chunk))
                body += chunk
        yield bytes(body)
    except TimeoutError as error:
        raise HTTPException(408, f"the request was not complete after {limits.timeout:g} seconds") from error
    except ClientDisconnect as error:
        raise HTTPException(CLIENT_GONE, "the client has disconnected") from error
    finally:
        budget.taken -= len(body)


def pixels_in(content: bytes, limits: Limits) -> int:
    """Return the number of pixels of an image file, from its head: nothing is decoded, and only the formats of photographs are tried.

    Raises HTTPException for a file that is not an image (415), is damaged (422), or too large (413).
    """
    if len(content) > limits.max_bytes:
        raise HTTPException(413, f"an image may have at most {limits.max_bytes} bytes")
    try:
        width, height = _size(content)
    except UnidentifiedImageError as error:
        if heif.is_heif(content[:32]):
            raise HTTPException(415, _HEIC) from error
        raise HTTPException(415, f"not an image of a known format: {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise anything on damaged input
        raise HTTPException(422, f"damaged image: {error}") from error
    if width * height > limits.max_pixels:
        raise HTTPException(413, f"an image may have at most {limits.max_pixels} pixels, not {width} x {height}")
    if max(width, height) > _MAX_PROPORTION * max(min(width, height), 1):
        raise HTTPException(422, f"an image may be at most {_MAX_PROPORTION} times as long as wide, not {width} x {height}")
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MAX_SCANS:
        raise HTTPException(422, f"a JPEG may have at most {_MAX_SCANS} scans")
    if content.startswith(b"\x89PNG") and content.count(b"IDAT") > _MAX_READS:
        raise HTTPException(422, f"a PNG may have at most {_MAX_READS} chunks")
    return width * height


def _size(content: bytes) -> tuple[int, int]:
    """Return width and height of an image from its file's head. Raises any exception if it is damaged."""
    if arrays.is_array(content):
        return arrays.size(content)
    try:
        with opened(_FewReads(content), ANY_SIZE) as head:
            return head.size
    except UnidentifiedImageError:
        if not tiff.is_tiff(content):
            raise
        with quiet():
            return tiff.size(content)


class _FewReads(BytesIO):
    """A file with a limited number of reads: Pillow reads each part of its head, and a long file can have millions."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"its head has more than {_MAX_READS} parts")
        return super().read(size)


def decoded(content: bytes, how: Reading = AS_RGB) -> Image | DeepImage:
    """Return the opened image of a file that `pixels_in` accepted. Raises HTTPException (422) if it is damaged, or has other channels."""
    try:
        return read_image(content, how=how)
    except CorruptImageError as error:
        raise HTTPException(422, str(error)) from error
