"""Extract the file from a request's body: as it is, in a multipart form, or as base 64 in JSON.

All three take a few passes over the body's bytes, none of which blocks other threads for long: a body that would take a parser
many small steps, for instance a million brackets or form fields, is refused before the first.
"""

import base64
import json
import string
from email.message import Message
from email.parser import BytesHeaderParser

from starlette.exceptions import HTTPException

_MAX_PARTS = 32  # of a form: one is the file, and browsers and libraries add a few fields
_MAX_HEADERS = 4096  # bytes, of a part of a form
_MAX_AROUND = 4096  # bytes of JSON that are not base 64: the braces, the key, white space, a media type
_BASE64 = (string.ascii_letters + string.digits + "+/=-_\\").encode()
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_PER_ESCAPE = 16  # bytes of JSON per backslash: some libraries write each "/" as "\/", some break lines after 76 characters


def content_of(body: bytes, content_type: str) -> bytes:
    """Return the bytes of the file. Raises HTTPException (422) if there is no file, or none that can be read."""
    kind = kind_of(content_type)
    if kind == "multipart/form-data":
        content = _from_form(body, content_type)
    elif kind == "application/json":
        content = _from_json(body)
    else:
        content = body
    if not content:
        raise HTTPException(422, "no image in the request")
    return content


def kind_of(content_type: str) -> str:
    """Return the media type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def _from_form(body: bytes, content_type: str) -> bytes:
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if not boundary:
        raise HTTPException(422, "unreadable form: the content type names no boundary")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), _MAX_PARTS + 1)
    if len(parts) > _MAX_PARTS:
        raise HTTPException(422, f"the form has more than {_MAX_PARTS - 1} parts: send the image as its one file")
    if not parts or not parts[-1].startswith(b"--"):
        raise HTTPException(422, "the form has no file, or an incomplete one")
    contents = [_content_in(part) for part in parts[:-1]]
    files = [content for content, is_file in contents if is_file]
    files = files or [_of_url(content, "the form's data: URL is not base 64") for content, _ in contents if content.startswith(b"data:")]
    if len(files) != 1:
        raise HTTPException(422, "the form has more than one file" if files else "the form has no file, or an incomplete one")
    return files[0]


def _content_in(part: bytes) -> tuple[bytes, bool]:
    """Return the content of a part, and whether it is a file; other parts are fields."""
    end = part.find(b"\r\n\r\n", 0, _MAX_HEADERS)
    if end < 0 or part[:end].partition(b"\r\n")[0].strip():
        raise HTTPException(422, f"unreadable form: a part's headers end with an empty line, after {_MAX_HEADERS} bytes at most")
    headers = BytesHeaderParser().parsebytes(part[:end].lstrip())
    content, coding = part[end + 4 :], headers.get("content-transfer-encoding", "binary").strip().lower()
    if headers.get_param("filename", header="content-disposition") is None:
        return content, False
    if coding == "base64":
        return _decoded(content, "the form's file is not valid base 64, although it says so"), True
    if coding not in ("binary", "8bit", "7bit"):
        raise HTTPException(422, f"the form's file is encoded as {coding!r}: send it as it is")
    return content, True


def _from_json(body: bytes) -> bytes:
    problem = 'the JSON must be {"image": "…"} with the image in base 64'
    if len(body.translate(None, _BASE64)) > _MAX_AROUND or body.count(b"\\") > len(body) // _PER_ESCAPE + _MAX_AROUND:
        raise HTTPException(422, problem)
    try:
        text = json.loads(body)["image"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise HTTPException(422, problem) from error
    if not isinstance(text, str):
        raise HTTPException(422, problem)
    content = text.encode(errors="replace")
    return _of_url(content, problem) if content.startswith(b"data:") else _decoded(content, problem)


def _of_url(url: bytes, problem: str) -> bytes:
    """Return the content of a data: URL (RFC 2397), which a browser's FileReader or canvas gives."""
    head, _, text = url.partition(b",")
    if not head.rstrip().lower().endswith(b";base64"):
        raise HTTPException(422, problem)
    return _decoded(text, problem)


def _decoded(text: bytes, problem: str) -> bytes:
    """Return the bytes of base 64, with either of its alphabets (RFC 4648), broken into lines or not, padded or not."""
    joined = text.translate(_URL_SAFE, b" \t\r\n").rstrip(b"=")
    try:
        return base64.b64decode(joined + b"=" * (-len(joined) % 4), validate=True)
    except ValueError as error:
        raise HTTPException(422, problem) from error
