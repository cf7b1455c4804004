"""What the service takes in: so many bytes within so many seconds, and in them an image of so many pixels."""

import asyncio
import math
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

import PIL.Image
from PIL.Image import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from convnext.data.deep import DeepImage
from convnext.data.images import FORMATS, CorruptImageError, read_image
from convnext.errors import UsageError
from convnext.serve.bodies import kind_of

_SCANS = 100  # of a progressive JPEG, each as long as decoding the whole; encoders make about ten
_READS = 50_000  # parts of an image file, each a step of Pillow in Python; encoders write some thousand in the largest
_PROPORTION = 100  # long side to short: the short one is enlarged to what the network takes, and the long one with it
_ENVELOPE = 4096  # bytes that a multipart form or JSON may take beside its image
_UPLOADS = 16  # of the largest size that memory holds at once; of usual photographs, many more
CLIENT_GONE = 499  # nobody hears it; so the metrics tell hung up from failed


@dataclass(frozen=True)
class Limits:
    """How much a client may ask for."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 25_000_000
    queue: int = 64  # images that wait for one model
    timeout: float = 10.0  # seconds to send a request, and again to be answered
    mask_pixels: int = 400_000_000  # within the boxes of all masks of an answer

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"--timeout {self.timeout}: give a number of seconds, such as 10")


class Room:
    """The bytes of all requests that are being held."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0

    def take(self, size: int) -> None:
        """Raises HTTPException (503) if there is not so much room."""
        if self.taken + size > self.size:
            raise HTTPException(503, "too many uploads at once", {"Retry-After": "1"})
        self.taken += size


class PixelRoom:
    """So many images, and so many pixels of them together, at once; the others wait in the order in which they come.

    An image of more pixels than that has all of the room.
    """

    def __init__(self, images: int, pixels: int) -> None:
        self.images, self.most, self.taken = asyncio.Semaphore(images), pixels, 0
        self._first, self._freed = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def pixels(self, count: int, held_up: Callable[[], AbstractContextManager[None]]) -> AsyncIterator[None]:
        """Room for its pixels; `held_up` is entered while it waits for that."""
        with held_up():
            async with self._first:
                while self.taken and self.taken + count > self.most:
                    self._freed.clear()
                    await self._freed.wait()
                self.taken += count
        try:
            yield
        finally:
            self.taken -= count
            self._freed.set()


def room_for(limits: Limits) -> Room:
    """As much as memory should hold of what is being sent."""
    return Room(_UPLOADS * most_bytes(limits, "application/json"))


def most_bytes(limits: Limits, kind: str) -> int:
    """How long a body of that content type may be for its image to keep within the limit.

    Base 64 makes four bytes of three, and a tenth more where it is broken into lines or its slashes are escaped.
    """
    return (limits.max_bytes * 22 // 15 if kind == "application/json" else limits.max_bytes) + _ENVELOPE


@asynccontextmanager
async def read_body(request: Request, limits: Limits, room: Room) -> AsyncIterator[bytes]:
    """The body of a request, whose bytes take room until they are done with.

    Raises HTTPException as soon as it is longer than it may be (413), comes too slowly (408), or finds no room (503).
    """
    most = most_bytes(limits, kind_of(request.headers.get("content-type", "")))
    too_long = HTTPException(413, f"an image may have {limits.max_bytes} bytes")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.timeout):
            async for chunk in request.stream():
                if len(body) + len(chunk) > most:
                    raise too_long
                room.take(len(chunk))
                body += chunk
        yield bytes(body)
    except TimeoutError as error:
        raise HTTPException(408, f"the request was not complete after {limits.timeout:g} seconds") from error
    except ClientDisconnect as error:
        raise HTTPException(CLIENT_GONE, "the client is gone") from error
    finally:
        room.taken -= len(body)


def pixels_in(content: bytes, limits: Limits) -> int:
    """How many pixels an image file has, by its head: nothing is decoded, and only formats that photographs come in are tried.

    Raises HTTPException for what is no image (415), is damaged (422), or too large (413).
    """
    if len(content) > limits.max_bytes:
        raise HTTPException(413, f"an image may have {limits.max_bytes} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(_FewReads(content), formats=FORMATS) as head:
                width, height = head.size
    except PIL.UnidentifiedImageError as error:
        raise HTTPException(415, f"no image of a known format: {', '.join(FORMATS)}") from error
    except PIL.Image.DecompressionBombError as error:
        raise HTTPException(413, f"an image may have {limits.max_pixels} pixels") from error
    except Exception as error:  # decoders raise anything on damaged input
        raise HTTPException(422, f"damaged image: {error}") from error
    if width * height > limits.max_pixels:
        raise HTTPException(413, f"an image may have {limits.max_pixels} pixels, not {width} x {height}")
    if max(width, height) > _PROPORTION * max(min(width, height), 1):
        raise HTTPException(422, f"an image may be {_PROPORTION} times as long as wide, not {width} x {height}")
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _SCANS:
        raise HTTPException(422, f"a JPEG may have {_SCANS} scans")
    if content.startswith(b"\x89PNG") and content.count(b"IDAT") > _READS:
        raise HTTPException(422, f"a PNG may have {_READS} chunks")
    return width * height


class _FewReads(BytesIO):
    """A file that Pillow may read so many times, as it does for each of its parts: a long file can have millions."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = _READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"its head has more than {_READS} parts")
        return super().read(size)


def decoded(content: bytes) -> Image | DeepImage:
    """The opened image of a file that `pixels_in` let pass. Raises HTTPException (422) if it is damaged."""
    try:
        return read_image(content)
    except CorruptImageError as error:
        raise HTTPException(422, str(error)) from error
