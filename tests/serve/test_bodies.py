"""Bodies of requests: what is found in them, and that no more than a few passes over their bytes are made."""

import base64
import json
import re
import struct
import sys
import zlib

import pytest
from helpers import sample_image
from service import encoded
from starlette.exceptions import HTTPException

from convnext.serve import bodies
from convnext.serve.bodies import content_of
from convnext.serve.limits import Limits, pixels_in

CONTENT = encoded(sample_image())
TEXT, URL_SAFE = base64.b64encode(CONTENT).decode(), base64.urlsafe_b64encode(CONTENT).decode()
MANY = 2_000_000


def form(*parts, boundary="x"):
    """A form of parts, each of a head and a content."""
    lines = b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary.encode(), head, content) for head, content in parts)
    return lines + b"--%s--\r\n" % boundary.encode()


FILE = b'Content-Disposition: form-data; name="file"; filename="p.png"'
FIELD = b'Content-Disposition: form-data; name="note"'


assert "-" in URL_SAFE
assert "_" in URL_SAFE


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        base64.encodebytes(CONTENT).decode(),  # in lines, as `base64 FILE` gives them
        base64.encodebytes(CONTENT).decode().replace("\n", "\r\n"),
        f"data:image/png;base64,{TEXT}",  # as a browser's FileReader does
        f"data:;base64,{base64.encodebytes(CONTENT).decode()}",
        URL_SAFE,
        URL_SAFE.rstrip("="),
        f"data:image/png;base64,{URL_SAFE}",
    ],
)
def test_base_64_in_json_in_all_its_forms(text):
    for body in (json.dumps({"image": text}), json.dumps({"image": text}, indent=4), json.dumps({"image": text}).replace("/", "\\/")):
        assert content_of(body.encode(), "application/json; charset=utf-8") == CONTENT


@pytest.mark.parametrize(
    ("parts", "boundary"),
    [
        ([(FILE, CONTENT)], "x"),
        ([(FIELD, b"hello"), (FILE + b"\r\nContent-Type: image/png", CONTENT), (FIELD, b"")], "----WebKitFormBoundary7MA4YWxkTrZu0gW"),
        ([(b"content-disposition: form-data; name=file; filename*=UTF-8''p%20q.png", CONTENT)], "a b"),
        ([(FILE + b"\r\nContent-Transfer-Encoding: base64", base64.encodebytes(CONTENT))], "x"),
        ([(FILE + b"\r\nContent-Transfer-Encoding: BASE64", URL_SAFE.encode())], "x"),
        ([(FIELD, b"hello"), (FIELD, b"data:image/png;base64," + TEXT.encode())], "x"),  # as a page sends what is on its canvas
        ([(FIELD, b"data:,hello"), (FILE, CONTENT)], "x"),
    ],
)
def test_the_one_file_of_a_form(parts, boundary):
    for before in (b"", b"\r\n", b"a preamble\r\n"):
        assert content_of(before + form(*parts, boundary=boundary), f'multipart/form-data; boundary="{boundary}"') == CONTENT


REFUSED = {
    "brackets": ("application/json", b"[" + b"{}," * MANY + b"{}]"),
    "nested": ("application/json", b'{"image":' * MANY),
    "numbers": ("application/json", b"[" + b"1," * MANY + b"1]"),
    "names": ("application/json", b"{" + b'"a":1,' * MANY + b'"image":""}'),
    "escapes": ("application/json", b'{"image":"' + b"\\n" * MANY + b'"}'),
    "a long number": ("application/json", b'{"image":' + b"9" * MANY + b"}"),
    "a long fraction": ("application/json", b'{"image":1.' + b"9" * MANY + b"}"),
    "white space": ("application/json", b" " * MANY + b'{"image":""}'),
    "an image that is a list": ("application/json", b'{"image":["a"]}'),
    "an image that is null": ("application/json", b'{"image":null}'),
    "not a number": ("application/json", b'{"image":NaN}'),
    "UTF-16": ("application/json", json.dumps({"image": TEXT}).encode("utf-16")),
    "fields": ("multipart/form-data; boundary=x", form(*[(FIELD, b"")] * 50_000)),
    "files": ("multipart/form-data; boundary=x", form((FILE, CONTENT), (FILE, CONTENT))),
    "headers": ("multipart/form-data; boundary=x", form((FILE + b"\r\nA: b" * MANY, CONTENT))),
    "a long header": ("multipart/form-data; boundary=x", form((FILE + b"; a=" + b"b" * MANY, CONTENT))),
    "no headers": ("multipart/form-data; boundary=x", b"--x" * MANY),
    "no file": ("multipart/form-data; boundary=x", form((FIELD, CONTENT))),
    "a URL that is not of base 64": ("application/json", json.dumps({"image": "data:image/png,%89PNG"}).encode()),
    "a field with such a URL": ("multipart/form-data; boundary=x", form((FIELD, b"data:image/png,%89PNG"))),
    "no base 64": ("application/json", json.dumps({"image": f"{TEXT[:-4]}!!!!"}).encode()),
    "no end": ("multipart/form-data; boundary=x", form((FILE, CONTENT))[:-7]),
    "another boundary": ("multipart/form-data; boundary=y", form((FILE, CONTENT))),
    "no boundary": ("multipart/form-data", form((FILE, CONTENT))),
    "another coding": ("multipart/form-data; boundary=x", form((FILE + b"\r\nContent-Transfer-Encoding: quoted-printable", CONTENT))),
    "nothing": ("image/png", b""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_take_many_small_steps_is_refused_before_any(monkeypatch, case):
    kind, body = REFUSED[case]
    parsed = []
    loads, parse = bodies.json.loads, bodies.BytesHeaderParser.parsebytes
    monkeypatch.setattr(bodies.json, "loads", lambda text: parsed.append(len(text)) or loads(text))
    monkeypatch.setattr(bodies.BytesHeaderParser, "parsebytes", lambda self, text: parsed.append(len(text)) or parse(self, text))
    with pytest.raises(HTTPException) as refused:
        content_of(body, kind)
    assert refused.value.status_code == 422
    assert refused.value.detail
    if case not in ("a long number", "a long fraction"):  # one step, however long: json gives up at 4300 digits
        assert sum(parsed) < 20_000


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


CHUNKS = {
    "PNG": CONTENT[:33] + _chunk(b"abCd", b"") * 200_000 + CONTENT[33:],
    "PNG in pieces": CONTENT[:33] + _chunk(b"IDAT", b"") * 200_000 + CONTENT[33:],
    "JPEG": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 200_000 + encoded(sample_image(), "JPEG")[2:],
    "JPEG of fill bytes": b"\xff\xd8" + b"\xff" * 200_000 + encoded(sample_image(), "JPEG")[2:],
}


@pytest.mark.parametrize("case", CHUNKS)
def test_an_image_file_of_endless_small_parts_is_refused_by_its_head(case):
    with pytest.raises(HTTPException) as refused:
        pixels_in(CHUNKS[case], Limits())
    assert refused.value.status_code == 422
    assert re.search("parts|chunks", refused.value.detail)
    assert pixels_in(CONTENT, Limits()) == 48 * 40


def test_a_heic_that_the_service_cannot_read_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    head = struct.pack(">I4s4sI", 24, b"ftyp", b"heic", 0) + b"mif1heic"
    with pytest.raises(HTTPException) as refused:
        pixels_in(head + bytes(90), Limits())
    assert refused.value.status_code == 415
    assert refused.value.detail.startswith("a HEIC image, which the service can't read without pillow-heif: send a JPEG, or install")
