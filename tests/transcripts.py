"""Documented output compared with real output: the text must agree, the values may differ.

Small trainings on small data print other numbers, classes, networks and images than the documented ones, and fewer epochs. So both sides
are normalised by general rules, and each documented line must be among the real ones, in the documented order.
"""

import re

from convnext.models.registry import names

# Names of classes in the documented data and in that of the tests. Those in a printed list of classes are found there.
CLASSES = {"ant", "ants", "bee", "bees", "background", "ground", "road", "even", "odd", "prime", "across", "down", "maize", "wheat"}
_WITHOUT_VALUE = ("–", "nan", "nothing")  # printed in the place of a value
_LIST = re.compile(r"(?<!\w)class(?:es)?: (.+)$", re.MULTILINE)
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_IMAGE = re.compile(r"(?<![\w/])(?!runs/)[\w./-]+\.(?:jpe?g|png|tiff?)\b")
_NETWORK = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(map(re.escape, names()), key=len, reverse=True))}|\w*roadmap_t_\w+)(?!\w)")
_NUMBER = re.compile(r"(?<![A-Za-z_#])[-+−]?\d+(?:[.,:]\d+)*(?:e[-+]?\d+)?")
_VALUES = re.compile(r"#(?:%?[\s,…]+#)+%?")
_COUNTED = re.compile(r"(?<=# )(?:\w+ ){0,1}\w+")
_PLURALS = {"were": "was", "are": "is", "have": "has"}


def listed_classes(text):
    """Return the names in lists such as `2 classes: ants 124, bees 121` and `classes: even, odd`."""
    found = [re.sub(r"\s+\d+$", "", name.strip()) for line in _LIST.findall(text) for name in line.split(",")]
    return {name for name in found if name and "…" not in name}


def normalised(line, classes=frozenset()):
    """Return a line with `#` for each value or row of values, one name for all networks and images, and single spaces.

    Names of classes are values too, and so is what is printed where there is none: a table of other classes has the same text.
    """
    line = _NETWORK.sub("NETWORK", _IMAGE.sub("IMAGE", _ESCAPE.sub("", line)))
    names = {one for one in (*classes, *CLASSES) if not one.isdigit()}  # digits are values by themselves, and parts of numbers
    values = sorted({*names, *_WITHOUT_VALUE} - {""}, key=len, reverse=True)
    line = re.sub(rf"(?<![\w-])(?:{'|'.join(map(re.escape, values))})(?![\w-])", "#", line)
    line = _VALUES.sub("#", _NUMBER.sub("#", line))
    line = re.sub(r"#[\s,]*…", "#…", line)
    line = _COUNTED.sub(lambda found: " ".join(map(_singular, found[0].split())), line)
    return " ".join(line.split())


def _singular(word):
    word = _PLURALS.get(word, word)
    if word.endswith(("sses", "xes")):
        return word.removesuffix("es")
    return word if word.endswith(("ss", "is", "was", "has")) else word.removesuffix("s")


def _matches(documented, real):
    """`…` within a documented line stands for any text."""
    pattern = r"\s*.*\s*".join(re.escape(part.strip()) for part in documented.split("…"))
    return re.fullmatch(pattern, real) is not None


def first_missing(documented, printed):
    """Return the first documented line that does not follow in the printed text, or None.

    Args:
        documented: the lines of a page under a command; a line `…` stands for any lines.
        printed: all that the command printed.
    """
    classes = listed_classes("\n".join(documented)) | listed_classes(printed)
    real = iter([normalised(line, classes) for line in printed.replace("\r", "\n").splitlines()])
    before = None
    for line in documented:
        wanted = normalised(line, classes)
        if wanted in ("", "…", before):  # equal lines in a row are one: a small training has fewer epochs
            continue
        before = wanted
        if not any(_matches(wanted, one) for one in real):
            return line
    return None


def check(where, documented, printed):
    """Raise AssertionError if the documented lines are not what was printed.

    Args:
        where: the page and the command, for the message.
        documented, printed: as of `first_missing`.
    """
    missing = first_missing(documented, printed)
    assert missing is None, (
        f"{where}\nthe page shows a line that the command did not print, or not behind the lines above it:\n  {missing}\n"
        f"it printed:\n{printed}\nText must agree, values may differ. Write … for lines, or a part of a line, that depend on the data."
    )
