"""A report as one HTML file without any outside resource: it opens offline, and in ten years."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from convnext.text import printable_lines

_STYLE = """
:root { --ink: #1d2733; --soft: #66758a; --line: #dfe5ec; --ground: #f6f8fa; --card: #fff; --accent: #0b6e99; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ef; --soft: #93a1b3; --line: #2e3844; --ground: #14191f; --card: #1c232b; --accent: #5cb8e0; }
  .figure { background: #fff; border-radius: 6px; padding: 8px; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 28px 18px 60px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 25px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 0 0 12px; }
.lead { color: var(--soft); margin: 4px 0 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin: 16px 0;
  overflow-x: auto; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; }
.card { flex: 1 1 150px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 22px; color: var(--accent); } .card span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
pre { margin: 0; font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.figure svg { max-width: 100%; height: auto; display: block; }
.figures { display: flex; flex-wrap: wrap; gap: 14px; } .figures .figure { flex: 1 1 320px; max-width: 500px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 12px; padding: 0; list-style: none; overflow-wrap: anywhere; }
.legend svg { margin-right: 8px; vertical-align: middle; }
.wide { overflow-x: auto; } .wide svg { min-width: 640px; }
.tight td { white-space: nowrap; } .spaced > * { margin: 14px 0 0; }
details { border-top: 1px solid var(--line); padding: 10px 0; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
figure { display: inline-block; width: 132px; margin: 0 10px 12px 0; vertical-align: top; font-size: 13px; overflow-wrap: anywhere; }
figure img { width: 132px; height: 132px; object-fit: contain; background: var(--ground); border-radius: 6px; image-rendering: auto; }
figure img.small { image-rendering: pixelated; }
.image { color: var(--soft); font-size: 13px; } .image img { max-width: 100%; border-radius: 6px; }
figcaption b { display: block; } figcaption span { color: var(--soft); }
"""


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `body` is HTML."""

    title: str
    body: str


def page(title: str, lead: str, cards: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The whole page as HTML; `cards` are the few numbers to see first, label to value."""
    head = "".join(f'<div class="card"><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>' for k, v in cards.items())
    body = "".join(f"<section><h2>{html.escape(section.title)}</h2>{section.body}</section>\n" for section in sections)
    whole = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p><div class="cards">{head}</div>\n{body}</body></html>\n'
    )
    return printable_lines(whole)  # names from outside are all over it, and a byte that is no UTF-8 would keep it from being written


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as an HTML table; the keys are its head."""
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    lines = ("".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def tight(body: str) -> str:
    """Tables whose cells are not wrapped: scrolled where the screen is narrow."""
    return f'<div class="tight">{body}</div>'


def spaced(parts: Sequence[str]) -> str:
    """HTML parts under each other, with room between them."""
    return f'<div class="spaced">{"".join(parts)}</div>'


def preformatted(text: str) -> str:
    """Text as it is."""
    return f"<pre>{html.escape(text)}</pre>"


def figure(svg: str, wide: bool = False) -> str:
    """An SVG drawing, inline; a wide one is scrolled on a narrow screen rather than shrunk until it can't be read."""
    return f'<div class="figure{" wide" if wide else ""}">{svg}</div>'


def figures(svgs: Sequence[str]) -> str:
    """SVG drawings side by side, under each other where the screen is narrow."""
    return f'<div class="figures">{"".join(map(figure, svgs))}</div>'


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Names with the line each is drawn with: (name, colour, dashes as in SVG's stroke-dasharray)."""
    items = (
        f'<li><svg width="28" height="8"><path d="M0 4H28" stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
        f"{html.escape(name)}</li>"
        for name, colour, dashes in entries
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def details(summary: str, body: str) -> str:
    """A part that unfolds when its summary is clicked; `body` is HTML."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def image(content: Image.Image, caption: str = "") -> str:
    """An image in its own size, inside the page, shrunk where the screen is narrower."""
    buffer = BytesIO()
    content.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p class="image"><img alt="" src="data:image/jpeg;base64,{data}"><br>{html.escape(caption)}</p>'


def tile(image: Image.Image, title: str, caption: str) -> str:
    """A thumbnail with two lines under it, the image inside the page."""
    small = max(image.size) <= 64
    image = image.copy()
    image.thumbnail((264, 264))
    buffer = BytesIO()
    image.save(buffer, "PNG" if small else "JPEG")
    data = base64.b64encode(buffer.getvalue()).decode()
    tag = f'<img {"class=small " if small else ""}alt="" src="data:image/{"png" if small else "jpeg"};base64,{data}">'
    return f"<figure>{tag}<figcaption><b>{html.escape(title)}</b><span>{html.escape(caption)}</span></figcaption></figure>"
