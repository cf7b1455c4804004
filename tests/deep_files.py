"""Files that Pillow does not write: 16-bit colour in PNG, and TIFF of any number and type of channels."""

import struct
import zlib

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels
_SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}


def png16(values, before=b""):
    """A PNG of uint16 (H, W, C) as a file's content; `before` are chunks in front of the pixels."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(values, order="<", compressed=False, planar=False, extra=None, orientation=None):
    """A TIFF of numbers (H, W, C) as a file's content, in one strip a plane; `extra` are its ExtraSamples."""
    height, width, channels = values.shape
    values = values.astype(values.dtype.newbyteorder(order))
    planes = [values.transpose(2, 0, 1)[i].tobytes() for i in range(channels)] if planar else [values.tobytes()]
    planes = [zlib.compress(plane) for plane in planes] if compressed else planes
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * values.itemsize] * channels),
        259: ("H", [8 if compressed else 1]),
        262: ("H", [2 if channels > 2 else 1]),
        273: ("I", [0] * len(planes)),
        274: ("H", [orientation or 1]),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(plane) for plane in planes]),
        284: ("H", [2 if planar else 1]),
        338: ("H", extra or []),
        339: ("H", [_SAMPLE_FORMATS[values.dtype.kind]] * channels),
    }
    tags = {tag: value for tag, value in tags.items() if value[1] and (tag != 274 or orientation)}
    start = 8 + 2 + 12 * len(tags) + 4
    sizes = [struct.calcsize(f"{order}{len(value)}{kind}") for kind, value in tags.values()]
    first = start + sum(size for size in sizes if size > 4)
    tags[273] = ("I", [first + sum(map(len, planes[:i])) for i in range(len(planes))])
    entries, blob = b"", b""
    for tag, (kind, value) in tags.items():
        packed = struct.pack(f"{order}{len(value)}{kind}", *value)
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(value))
        entries += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", start + len(blob))
        blob += packed if len(packed) > 4 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + blob + b"".join(planes)
