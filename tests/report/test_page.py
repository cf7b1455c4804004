from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers import sample_image

from convnext.paper import ladder
from convnext.report import drawing, overlay, page, plots
from convnext.report.sheets import Row, sheet

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
        page.Section("Images", page.tile(sample_image(), "ant", "a.jpg") + page.tile(sample_image(size=(400, 300)), "bee", "b.jpg")),
        page.Section("Table", page.table([{"a": 1, "b": "<b>"}])),
    ]
    html = page.page("A <run>", "lead", {"top1": "90 %"}, sections)
    assert parsed(html).outside == []
    assert "A &lt;run&gt;" in html
    assert "<td>&lt;b&gt;</td>" in html


@pytest.mark.parametrize("count", [1, 5, 12])
def test_prediction_sheets_of_any_number(tmp_path, count):
    path = tmp_path / "sheet.png"
    plots.predictions([sample_image(i) for i in range(count)], ["ant"] * count, [True] * count, path)
    assert path.read_bytes().startswith(b"\x89PNG")


NAMES = ["$\\frac{$", "cost_$^$", "a$b$", "中文类", "caf\udce9", "x" * 300, "two\nlines", "<b>&", "\x1b]0;title\x07", "\ud800"]


def test_names_of_any_text_are_drawn_as_they_are_and_written(tmp_path, recwarn):
    matrix = [[i * j % 7 for i in range(len(NAMES))] for j in range(len(NAMES))]
    svg = plots.confusion(matrix, NAMES)
    assert ">$\\frac{$<" in svg  # a name, no formula
    assert "…xxxx" in svg
    html = page.page("caf\udce9", "two\nlines", {NAMES[-1]: NAMES[-2]}, [page.Section(NAMES[4], page.figure(svg))])
    assert r"caf\xe9" in html
    assert "\x1b" not in html
    parsed(html.encode("utf-8").decode())
    plots.predictions([sample_image()] * len(NAMES), NAMES, [None] * len(NAMES), tmp_path / "sheet.png")
    found = ladder.Ladder("t", "$\\frac{$", 1, 32, [NAMES[4]], [ladder.Rung("stem", "why", 79.5, 4.4, 1, 1, [50.0])], iterations=1)
    ladder.write(found, tmp_path)
    assert "1 step," in (tmp_path / "roadmap.svg").read_text("utf-8")
    assert not recwarn.list


def test_names_of_any_text_are_drawn_on_images():
    whole = sheet([Row(name, [(sample_image(), name)]) for name in NAMES])
    assert whole.width < 2000
    boxes = {"boxes": torch.tensor([[0.0, 0.0, 9.0, 9.0]] * len(NAMES)), "labels": torch.arange(len(NAMES))}
    assert drawing.draw(sample_image(), boxes, NAMES).size
    mask = np.arange(48 * 40).reshape(40, 48) % len(NAMES)
    assert overlay.overlay(sample_image(), mask, NAMES).width == 360
