"""The font of text in images: Pillow's own, or one of the system's where the text has letters that it lacks."""

import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

log = logging.getLogger("convnext")

_MISSING = "\U0010ffff"  # a letter that no font has
_MAX_FONTS = 500  # that are looked at
# Those of many scripts, or of East Asia, are tried before others.
_WIDE = (
    "notosanscjk",
    "sourcehan",
    "notosans-regular",
    "unicode",
    "dejavusans.ttf",
    "pingfang",
    "hiragino",
    "msyh",
    "yugoth",
    "malgun",
    "wqy",
)


def font_for(size: int, texts: Iterable[str]) -> FreeTypeFont:
    """Return a font of so many pixels in height that has the letters of the texts, or else as many of them as a font here has.

    Letters that no font has are drawn as boxes, which a warning says.
    """
    return _font_for(size, frozenset("".join(texts)))


@lru_cache(maxsize=256)
def _font_for(size: int, letters: frozenset[str]) -> FreeTypeFont:
    own = ImageFont.load_default(size)
    if not isinstance(own, FreeTypeFont) or not (lacking := _lacking(own, letters)):  # Pillow without FreeType has one font only
        return own  # type: ignore[return-value]
    found = _system_font(letters, lacking)
    if found is None:
        return own
    return ImageFont.truetype(found, size)


def _lacking(font: FreeTypeFont, letters: Iterable[str]) -> frozenset[str]:
    """Return the letters that a font draws as it draws those that it does not have."""
    missing = bytes(font.getmask(_MISSING))
    return frozenset(one for one in letters if one.isprintable() and not one.isspace() and bytes(font.getmask(one)) == missing)


@lru_cache(maxsize=64)
def _system_font(letters: frozenset[str], own_lacks: frozenset[str]) -> str | None:
    """Return the path of the font that lacks the fewest of the letters; None where each lacks as many as Pillow's own."""
    best, fewest = None, own_lacks
    for path in _paths():
        try:
            lacking = _lacking(ImageFont.truetype(path, 16), letters)
        except OSError:  # a font that Pillow can't read
            continue
        if len(lacking) < len(fewest):
            best, fewest = path, lacking
        if not lacking:
            break
    if fewest:
        shown = " ".join(sorted(fewest)[:5])
        log.warning("no font on this machine has %s: names are drawn with boxes there; install one, of fonts-noto or fonts-noto-cjk", shown)
    return best


@lru_cache(maxsize=1)
def _paths() -> list[str]:
    """Return the fonts to try, in that order."""
    from matplotlib import font_manager

    def order(path: str) -> tuple[int, str]:
        name = Path(path).name.lower().replace(" ", "")
        return next((i for i, word in enumerate(_WIDE) if word in name), len(_WIDE)), path

    bundled = font_manager.findfont("DejaVu Sans")  # comes with Matplotlib, and has the letters of Europe
    return [bundled, *sorted(font_manager.findSystemFonts(), key=order)[:_MAX_FONTS]]
