"""Text from outside: names of files and classes, and text files. It is read as UTF-8 and made safe to print, draw and write."""

import math
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from convnext.errors import ConvnextError

# Control characters, line separators, lone surrogates (bytes that are not UTF-8), and marks that change the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]")

_SHOWN = 5  # reasons in a message


def printable(text: str) -> str:
    r"""Return text from outside (a file name, a class name, a message) as one line that every terminal, page, figure and file accepts.

    Characters that do not print are escaped as in Python: a newline becomes `\n`, a byte that is not UTF-8 `\xe9`.
    """
    if text.isascii() and text.isprintable():
        return text
    with suppress(UnicodeEncodeError):  # raised by surrogates that encode no byte, which JSON may contain
        # If Python reads names as ASCII, as with LC_ALL=C, each byte of their UTF-8 has become a surrogate: decode the bytes again.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """Return text of several lines with `printable` applied to each."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(text: str, max_length: int) -> str:
    """Return the text, with its middle replaced by "…" if it is longer than `max_length` characters."""
    if len(text) <= max_length:
        return text
    end = max_length // 2
    return f"{text[: max_length - end - 1]}…{text[len(text) - end :]}"


def counted(count: int, what: str) -> str:
    """Return a number of things: "1 image", "2 images", "3 classes"."""
    return f"{count} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"


def beyond_limit(what: str, found: int, count: int, limit: float, limit_key: str, reasons: Sequence[str]) -> str:
    """Return the error message on more unusable images or objects than may be, with the value of the key that accepts so many.

    Args:
        what: is wrong, as "2 of 9 images are missing".
        found: the number of those.
        count: the number of all.
        limit: the largest fraction.
        limit_key: how the user says the limit, `data.max_corrupt` or `--max-corrupt`.
        reasons: one for each of `found`; the first are shown.
    """
    some = "; ".join(map(printable, reasons[:_SHOWN])) + ("; …" if len(reasons) > _SHOWN else "")
    percent = math.ceil(100 * found / count)
    percent += found > percent / 100 * count  # 0.29 * 100 is a little less than 29
    given = f"{limit_key}{' ' if limit_key.startswith('-') else '='}{percent / 100:g}"
    accept = f", or accept their loss with {given} or more" if percent <= 50 else ""
    return f"{what}, more than {limit:.1%} ({limit_key}): {some}. Correct or remove them (`convnext data check` lists all){accept}"


def class_name(name: str) -> str:
    """Return a class name as it is compared, printed and stored: in one Unicode form (NFC) and printable."""
    return unicodedata.normalize("NFC", printable(name))


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte order mark. Raises ConvnextError if it is not UTF-8 or can't be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConvnextError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise ConvnextError(f"{path} can't be read: {error.strerror}") from error


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, split at line feeds only: a name may contain other characters at which `splitlines` splits."""
    text = text.rstrip()  # reading as text has turned "\r\n" and "\r" into "\n"
    return text.split("\n") if text else []


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file. Raises ConvnextError as `read_text` does."""
    return lines_of(read_text(path))
