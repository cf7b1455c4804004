"""Text that comes from outside, from names of files and classes to files of text: read as UTF-8, shown so that nothing breaks."""

import re
import unicodedata
from contextlib import suppress
from pathlib import Path

from convnext.errors import ConvnextError

# Controls, what separates lines, lone surrogates (bytes that are no UTF-8), and what turns the direction of writing round.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Text from outside (a file's name, a class's, an error's) as one line that any terminal, page, figure and file takes.

    What would not show as itself is escaped as Python escapes it: a newline becomes `\n`, a byte that is no UTF-8 `\xe9`.
    """
    if text.isascii() and text.isprintable():
        return text
    with suppress(UnicodeEncodeError):  # at surrogates that stand for no byte, as JSON may have
        # Where Python takes names for ASCII, as with LC_ALL=C, each byte of their UTF-8 has become a surrogate: this undoes it.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """`printable` line by line: for text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(text: str, most: int) -> str:
    """Text of at most so many characters, the middle left out where it has more."""
    return text if len(text) <= most else f"{text[: most - most // 2 - 1]}…{text[len(text) - most // 2 :]}"


def counted(count: int, what: str) -> str:
    """A number of things: "1 image", "2 images", "3 classes"."""
    return f"{count} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"


def class_name(name: str) -> str:
    """A class's name as it is compared, printed and stored: é in one Unicode form (NFC), and printable whatever a folder is called."""
    return unicodedata.normalize("NFC", printable(name))


def read_text(path: Path) -> str:
    """The text of a file, UTF-8 with or without a byte order mark. Raises ConvnextError, naming it, if it is no UTF-8 or can't be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConvnextError(f"{path} is no UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise ConvnextError(f"{path} can't be read: {error.strerror}") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text, at the ends that editors write: a name may hold what Python's `splitlines` also takes for one."""
    text = text.rstrip()  # Python reads "\r\n" and "\r" as "\n"
    return text.split("\n") if text else []


def read_lines(path: Path) -> list[str]:
    """`lines_of` the text of `read_text`."""
    return lines_of(read_text(path))
