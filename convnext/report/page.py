"""A report as one HTML file without any outside resource: it opens offline, and in ten years.

The functions here give parts of a page as HTML, rendered by the templates beside this file; text from outside is escaped there.
"""

import base64
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from convnext.errors import first_line
from convnext.models.weights.files import write_text
from convnext.report import palette
from convnext.text import printable_lines

if TYPE_CHECKING:
    from jinja2 import Environment

_STYLE = re.compile(r'style="[^"]*"')
_THEMED = {palette.THEMES["light"][name]: f"var(--{name})" for name in ("ink", "soft", "line")}  # of what is drawn beside the curves
_SMALL = 64  # pixels of the long side: smaller images show their pixels
_MAX_IMAGE = (2040, 8160)  # pixels: two for each pixel of the page's width; WebP holds no more than 16383 a side
_MAX_ROWS = 40  # of a table that is shown without a click
_TILE = 264  # pixels of the long side of a tile's image: two for each pixel of the page
_FIRST_TILES, _FIRST_WIDE = 12, 3  # images of a section that are shown without a click: tiles, and those as wide as the page


@dataclass(frozen=True)
class PageSection:
    """A titled part of the page; `body` is HTML."""

    title: str
    body: str


def page(title: str, lead: str, cards: Mapping[str, str], sections: Sequence[PageSection]) -> str:
    """Return the whole page as HTML; `cards` are the few numbers to see first, label to value."""
    template = _templates().get_template("page.html.j2")
    whole = template.render(title=title, lead=lead, cards=cards, sections=sections, themes=palette.THEMES)
    # Names from outside are all over it, and bytes that are not UTF-8 could not be written.
    return printable_lines(whole) + "\n"


def write_page(path: Path, make: Callable[[], str], report: Callable[[str], None]) -> bool:
    """Write what `make` returns to `path`, whole or not at all, and return whether that succeeded.

    A failure is reported in one line and never raised: the page is about work that is done, and must not take it down.
    """
    try:
        text = make()
        write_text(path, text)
    except Exception as error:  # from drawing to writing, whatever it is: hours of work may lie behind it
        report(f"the report {path} could not be written ({type(error).__name__}: {first_line(error)}); everything else is there")
        return False
    return True


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows of the same keys as an HTML table; the keys are its head."""
    return part("table", rows=rows) if rows else paragraph("None.")


def paragraph(text: str) -> str:
    """Return text as a paragraph."""
    return part("paragraph", text=text, kind="")


def notice(text: str) -> str:
    """Return text as a paragraph that stands out."""
    return part("paragraph", text=text, kind="notice")


def tight(body: str) -> str:
    """Return tables with cells that are not wrapped: a narrow screen scrolls them."""
    return part("block", kind="tight", parts=[body])


def spaced(parts: Sequence[str]) -> str:
    """Return HTML parts under each other, with room between them."""
    return part("block", kind="spaced", parts=parts)


def beside(parts: Sequence[str]) -> str:
    """Return tiles in a row of their own."""
    return part("block", kind="beside", parts=parts)


def preformatted(text: str) -> str:
    """Return text with its own line breaks, in a font of one width."""
    return part("preformatted", text=text)


def figure(svg: str, wide: bool = False) -> str:
    """Return an SVG drawing, inline and in the page's light or dark colours; a narrow screen scrolls a wide one instead of shrinking it."""
    return part("block", kind="figure wide" if wide else "figure", parts=[themed(svg)])


def natural(svg: str) -> str:
    """Return a drawing in its own size, which a narrow screen scrolls: one with numbers that would be too small to read."""
    return part("block", kind="figure natural", parts=[themed(svg)])


def figures(svgs: Sequence[str]) -> str:
    """Return SVG drawings side by side, under each other where the screen is narrow."""
    return part("block", kind="figures", parts=[figure(svg) for svg in svgs])


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Return names with the line that each is drawn with: (name, colour, dashes as in SVG's stroke-dasharray)."""
    return part("legend", entries=entries)


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Return names with the colour of each, as a square with a border: any colour is seen on a light and on a dark page."""
    return part("key", entries=entries)


def details(summary: str, body: str) -> str:
    """Return a part that unfolds when its summary is clicked; `body` is HTML."""
    return part("details", summary=summary, body=body)


def folded(table: str, classes: int) -> str:
    """Return a table with a row for each class; one of many classes unfolds when it is clicked."""
    return table if classes <= _MAX_ROWS else details(f"{classes} classes", table)


def tiles(found: Sequence[str], nothing: str) -> str:
    """Return tiles beside each other; those after the first dozen unfold. `nothing` says what it means that there are none."""
    return _with_rest(found, _FIRST_TILES) if found else paragraph(nothing)


def examples(found: Sequence[str], nothing: str) -> str:
    """Return wide images with their captions under each other; those after the first three unfold."""
    return _with_rest(found, _FIRST_WIDE) if found else paragraph(nothing)


def _with_rest(parts: Sequence[str], count: int) -> str:
    # One more takes no more room than the line that hides it.
    count = len(parts) if len(parts) <= count + 1 else count
    return "".join(parts[:count]) + (details(f"{len(parts) - count} more", "".join(parts[count:])) if len(parts) > count else "")


def image(content: Image.Image, caption: str = "") -> str:
    """Return an image inside the page, shrunk where the page or the screen is narrower. Transparent pixels stay transparent."""
    is_transparent = content.mode in {"RGBA", "LA", "PA"}
    content = content.copy()
    content.thumbnail(_MAX_IMAGE)
    return part("image", source=data_url(content, "WEBP" if is_transparent else "JPEG"), caption=caption)


def row(images: Sequence[tuple[str, Image.Image]], caption: str) -> str:
    """Return images side by side, each under its title, under each other where the screen is narrow."""
    side, parts = _MAX_IMAGE[0] // len(images), []
    for title, content in images:
        small = content.copy()
        small.thumbnail((side, 4 * side))
        parts.append((title, data_url(small, "JPEG")))
    return part("row", images=parts, caption=caption)


def tile(image: Image.Image, title: str, caption: str) -> str:
    """Return a thumbnail with two lines under it, the image inside the page."""
    is_small = max(image.size) <= _SMALL
    image = image.copy()
    image.thumbnail((_TILE, _TILE))
    return part("tile", source=data_url(image, "PNG" if is_small else "JPEG"), is_small=is_small, title=title, caption=caption)


def data_url(image: Image.Image, kind: str) -> str:
    """Return an image as a data URL; `kind` is JPEG, PNG or WEBP."""
    buffer = BytesIO()
    image.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def themed(svg: str) -> str:
    """Return an SVG drawing of `plots.svg` whose ink, lines and grounds take the page's colours."""
    return _STYLE.sub(lambda style: re.sub(r"#[0-9a-f]{6}", lambda colour: _THEMED.get(colour[0], colour[0]), style[0]), svg)


def part(name: str, template: str = "parts", **values: object) -> str:
    """Return what the macro `name` of a template renders, such as parts.html.j2."""
    macros = _templates().get_template(f"{template}.html.j2").module
    return str(getattr(macros, name)(**values))


@functools.cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("convnext.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
