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
_BASE64 = (string.ascii_letters + string.digits + "+/=\\").encode()
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
    files = [content for part in parts[:-1] if (content := _file_in(part)) is not None]
    if len(files) != 1:
        raise HTTPException(422, "the form has more than one file" if files else "the form has no file, or an incomplete one")
    return files[0]


def _file_in(part: bytes) -> bytes | None:
    """Return the content of a part that is a file; None for a field."""
    end = part.find(b"\r\n\r\n", 0, _MAX_HEADERS)
    if end < 0 or part[:end].partition(b"\r\n")[0].strip():
        raise HTTPException(422, f"unreadable form: a part's headers end with an empty line, after {_MAX_HEADERS} bytes at most")
    headers = BytesHeaderParser().parsebytes(part[:end].lstrip())
    if headers.get_param("filename", header="content-disposition") is None:
        return None
    content, coding = part[end + 4 :], headers.get("content-transfer-encoding", "binary").strip().lower()
    if coding == "base64":
        return _decoded(content, "the form's file is not valid base 64, although it says so")
    if coding not in ("binary", "8bit", "7bit"):
        raise HTTPException(422, f"the form's file is encoded as {coding!r}: send it as it is")
    return content


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
    if text.startswith("data:"):  # what a browser's FileReader gives
        text = text.partition(",")[2]
    return _decoded(text.encode(errors="replace"), problem)


def _decoded(text: bytes, problem: str) -> bytes:
    try:
        return base64.b64decode(text.translate(None, b" \t\r\n"), validate=True)  # broken into lines, as `base64 FILE` does
    except ValueError as error:
        raise HTTPException(422, problem) from error
