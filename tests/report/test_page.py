from html.parser import HTMLParser

import pytest
from helpers import picture

from convnext.report import page, plots

VOID = {"meta", "img", "br", "path", "use", "rect"}


class Balanced(HTMLParser):
    """Fails on a tag that closes another than the last opened; notes what is loaded from outside."""

    def __init__(self):
        super().__init__()
        self.open, self.outside = [], []

    def handle_starttag(self, tag, attributes):
        self.outside += [value for key, value in attributes if key in ("src", "href") and not (value or "").startswith(("data:", "#"))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser


def test_a_page_is_well_formed_and_loads_nothing_from_outside():
    lines = [{"kind": "train", "step": i, "epoch": i / 2, "loss": 1 / i, "lr": 0.1} for i in range(1, 5)]
    lines.append({"kind": "eval", "step": 4, "epoch": 2, "loss": 0.3, "top1": 90.0})
    sections = [
        page.Section("Curves", page.figure(plots.curves(lines, "top1"))),
        page.Section("Confusion", page.figure(plots.confusion([[3, 1], [0, 4]], ["ant", "bee"]))),
        page.Section("Pictures", page.tile(picture(), "ant", "a.jpg") + page.tile(picture(size=(400, 300)), "bee", "b.jpg")),
        page.Section("Table", page.table([{"a": 1, "b": "<b>"}])),
    ]
    html = page.page("A <run>", "lead", {"top1": "90 %"}, sections)
    assert parsed(html).outside == []
    assert "A &lt;run&gt;" in html
    assert "<td>&lt;b&gt;</td>" in html


@pytest.mark.parametrize("count", [1, 5, 12])
def test_prediction_sheets_of_any_number(tmp_path, count):
    path = tmp_path / "sheet.png"
    plots.predictions([picture(i) for i in range(count)], ["ant"] * count, [True] * count, path)
    assert path.read_bytes().startswith(b"\x89PNG")
