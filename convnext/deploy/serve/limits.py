"""What the service takes in: so many bytes within so many seconds, and in them a picture of so many pixels."""

import asyncio
import base64
import binascii
import json
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

import PIL.Image
from PIL.Image import Image
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, FormParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from convnext.data.pictures import CorruptPictureError, read_picture

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # not EPS, which Pillow has another program run
_SCANS = 100  # of a progressive JPEG, each as long as decoding the whole; encoders make about ten
_PROPORTION = 100  # long side to short: the short one is enlarged to what the network takes, and the long one with it
_ENVELOPE = 4096  # bytes that a multipart form or JSON may take beside its picture
_UPLOADS = 16  # of the largest size that memory holds at once; of usual photographs, many more
CLIENT_GONE = 499  # nobody hears it; so the metrics tell hung up from failed


@dataclass(frozen=True)
class Limits:
    """How much a client may ask for."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 25_000_000
    queue: int = 64  # pictures that wait for one model
    timeout: float = 10.0  # seconds to send a request, and again to be answered


class Room:
    """The bytes of all requests that are being held."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0

    def take(self, size: int) -> None:
        """Raises HTTPException (503) if there is not so much room."""
        if self.taken + size > self.size:
            raise HTTPException(503, "too many uploads at once", {"Retry-After": "1"})
        self.taken += size


def room_for(limits: Limits) -> Room:
    """As much as memory should hold of what is being sent."""
    return Room(_UPLOADS * most_bytes(limits, "application/json"))


def most_bytes(limits: Limits, kind: str) -> int:
    """How long a body of that content type may be for its picture to keep within the limit: base 64 makes four bytes of three."""
    return (limits.max_bytes * 4 // 3 if kind == "application/json" else limits.max_bytes) + _ENVELOPE


@asynccontextmanager
async def read_body(request: Request, limits: Limits, room: Room) -> AsyncIterator[bytes]:
    """The body of a request, whose bytes take room until they are done with.

    Raises HTTPException as soon as it is longer than it may be (413), comes too slowly (408), or finds no room (503).
    """
    most = most_bytes(limits, _kind(request.headers.get("content-type", "")))
    too_long = HTTPException(413, f"a picture may have {limits.max_bytes} bytes")
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


def picture_in(body: bytes, content_type: str, limits: Limits) -> Image:
    """The RGB picture that a body holds: as it is, as a file in a multipart form, or as {"image": base 64} in JSON.

    Raises HTTPException for what is no picture (415), is damaged or missing (422), or too large (413). The size is read before
    anything is decoded, and only formats that photographs come in are tried, whatever the request calls them.
    """
    kind = _kind(content_type)
    if kind == "multipart/form-data":
        content = _from_form(body, content_type)
    elif kind == "application/json":
        content = _from_json(body)
    else:
        content = body
    if not content:
        raise HTTPException(422, "no picture in the request")
    _check_head(content, limits)
    try:
        return read_picture(content)
    except CorruptPictureError as error:
        raise HTTPException(422, str(error)) from error


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _from_form(body: bytes, content_type: str) -> bytes:
    files: list[File] = []

    def keep(file: File) -> None:
        if files:  # now, not in the end: a long body holds a hundred thousand small files
            raise HTTPException(422, "the form has more than one file")
        files.append(file)

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = FormParser("multipart/form-data", None, keep, boundary=boundary, config=in_memory)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(422, f"no readable form: {error}") from error
    if not files:
        raise HTTPException(422, "the form has no file, or not all of it")
    files[0].file_object.seek(0)
    return files[0].file_object.read()


def _from_json(body: bytes) -> bytes:
    try:
        return base64.b64decode(json.loads(body)["image"], validate=True)
    except (ValueError, TypeError, LookupError, RecursionError, binascii.Error) as error:
        raise HTTPException(422, 'the JSON must be {"image": "…"} with the picture in base 64') from error


def _check_head(content: bytes, limits: Limits) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(BytesIO(content), formats=_FORMATS) as head:
                width, height = head.size
    except PIL.UnidentifiedImageError as error:
        raise HTTPException(415, f"no picture of a known format: {', '.join(_FORMATS)}") from error
    except PIL.Image.DecompressionBombError as error:
        raise HTTPException(413, f"a picture may have {limits.max_pixels} pixels") from error
    except Exception as error:  # decoders raise anything on damaged input
        raise HTTPException(422, f"damaged picture: {error}") from error
    if width * height > limits.max_pixels:
        raise HTTPException(413, f"a picture may have {limits.max_pixels} pixels, not {width} x {height}")
    if max(width, height) > _PROPORTION * max(min(width, height), 1):
        raise HTTPException(422, f"a picture may be {_PROPORTION} times as long as wide, not {width} x {height}")
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _SCANS:
        raise HTTPException(422, f"a JPEG may have {_SCANS} scans")
