"""JSON files of annotations, of bounded size."""

import json
import re
from pathlib import Path

from convnext.errors import ConvnextError, UsageError

MAX_BYTES = 1 << 30  # of a file of annotations


class MistakeError(ConvnextError):
    """A mistake in an annotation file; `str()` of it says what is wrong, and where if the reader knows."""


def read_json(file: Path, max_bytes: int = MAX_BYTES) -> object:
    """Return the content of a JSON file of at most `max_bytes`.

    Raises UsageError if it can't be read or is XML, ConvnextError if it is too large, MistakeError if it is damaged.
    """
    try:
        if file.stat().st_size > max_bytes:
            raise ConvnextError(f"{file} has more than {max_bytes >> 30} GiB: export parts of it")
        with open(file, "rb") as stream:
            content: object = json.load(stream)
            return content
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError or UnicodeDecodeError
        with open(file, "rb") as stream:
            tag = re.search(rb"\A[\s\xef\xbb\xbf]*(?:<[?!][^>]*>\s*)*<(\w+)", stream.read(10_000))
        if tag is not None:
            raise UsageError(f"{file} is XML, not JSON{like_xml(tag[1].decode())}") from error
        raise MistakeError(f"{file} is not JSON: {error}") from error


def like_xml(tag: str) -> str:
    """Return the end of an error message: the format that an XML file with this root looks like, or nothing."""
    kinds = {"annotation": "Pascal VOC: convnext data convert voc FOLDER", "annotations": "CVAT: convnext data convert cvat FILE"}
    return f"; it looks like {kinds[tag]}" if tag in kinds else ""
