import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers import sample_image
from PIL import Image

from convnext.paper import ladder, scatter
from convnext.report import drawing, overlay, page, palette, plots
from convnext.report.sheets import SheetRow, sheet

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
        page.PageSection("Curves", page.figures(plots.curves(lines, "top1"))),
        page.PageSection("Confusion", page.figure(plots.confusion([[3, 1], [0, 4]], ["ant", "bee"]))),
        page.PageSection("Images", page.tile(sample_image(), "ant", "a.jpg") + page.tile(sample_image(size=(400, 300)), "bee", "b.jpg")),
        page.PageSection("Table", page.table([{"a": 1, "b": "<b>"}])),
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
    html = page.page("caf\udce9", "two\nlines", {NAMES[-1]: NAMES[-2]}, [page.PageSection(NAMES[4], page.figure(svg))])
    assert r"caf\xe9" in html
    assert "\x1b" not in html
    parsed(html.encode("utf-8").decode())
    plots.predictions([sample_image()] * len(NAMES), NAMES, [None] * len(NAMES), tmp_path / "sheet.png")
    found = ladder.Ladder("t", "$\\frac{$", 1, 32, [NAMES[4]], [ladder.Rung("stem", "why", 79.5, 4.4, 1, 1, [50.0])], iterations=1)
    ladder.write(found, tmp_path)
    assert "1 step," in (tmp_path / "roadmap.svg").read_text("utf-8")
    assert not recwarn.list


@pytest.mark.parametrize("name", ["$\\frac{$x^{", "中文类"])
def test_no_name_in_a_figure_is_a_formula(name, tmp_path):
    lines = [{"kind": "train", "step": step, "epoch": step, "loss": 2.0, "lr": 0.1, f"loss_{name}": 1.0} for step in (1, 2)]
    lines += [{"kind": "eval", "step": step, "epoch": step, "loss": 1.0, name: 50.0, f"raw_{name}": 40.0} for step in (1, 2)]
    _, metric, _, parts = plots.curves(lines, name)
    assert f">Validation {name}" in metric
    assert f">{name.replace('_', ' ')}<" in parts
    assert f">{name}<" in plots.overlay([[(1.0, 0.5)]], name)
    svg = plots.percentages([plots.Line([0, 1], [50, 60], palette.BLUE, label=name)], name, name, (0, 1))
    assert svg.count(f">{name}<") == 3
    points = [scatter.Point(name, name, macs, 80.0, False, name) for macs in (1.0, 32.0)]
    scatter.scatter(points, name, tmp_path / "s.svg")
    drawn = (tmp_path / "s.svg").read_text("utf-8")
    assert f">{name}<" in drawn
    assert "mathdefault" not in drawn


def test_names_of_any_text_are_drawn_on_images():
    whole = sheet([SheetRow(name, [(sample_image(), name)]) for name in NAMES])
    assert whole.width < 2000
    boxes = {"boxes": torch.tensor([[0.0, 0.0, 9.0, 9.0]] * len(NAMES)), "labels": torch.arange(len(NAMES))}
    assert drawing.draw(sample_image(), boxes, NAMES).size
    mask = np.arange(48 * 40).reshape(40, 48) % len(NAMES)
    assert overlay.overlay(sample_image(), mask, NAMES).width == 360


def test_a_curve_of_one_point_is_visible():
    lines = [
        {"kind": "train", "step": 1, "epoch": 1, "loss": 2.0, "lr": 0.1},
        {"kind": "eval", "step": 1, "epoch": 1, "loss": 1.0, "top1": 50.0},
    ]
    loss, accuracy, rate = plots.curves(lines, "top1")
    for svg, colours in ((loss, (palette.BLUE, palette.ORANGE)), (accuracy, (palette.ORANGE,)), (rate, (palette.GREY,))):
        for colour in colours:
            assert re.search(rf'<use [^>]*style="fill: {colour}; stroke: {colour}', svg), colour
        assert len(re.findall(r'id="xtick_\d', svg)) == 1  # the one epoch, not hundredths of it
    assert re.search(rf'<use [^>]*style="fill: {palette.BLUE}', plots.overlay([[(1.0, 0.5)]], "Loss"))


def test_lines_of_percentages_have_gaps_where_nothing_is_defined():
    lines = [plots.Line([0.0, 0.5, 1.0], [None, None, None], palette.ORANGE), plots.Line([0, 1], [50, 60], palette.BLUE, label="F1")]
    svg = plots.percentages(lines, "Scores", "threshold", (0, 1), mark=0.5)
    assert f"stroke: {palette.BLUE}" in svg
    assert ">F1<" in svg
    assert "nan" not in svg
    assert page.folded("<table>", 40) == "<table>"
    assert "<details" in page.folded("<table>", 41)


def test_figures_take_the_colours_of_a_light_or_a_dark_page():
    for svg in (*plots.curves([], "top1"), plots.confusion([[3, 1], [0, 4]], ["ant", "bee"]), plots.overlay([[(0, 1), (1, 2)]], "Loss")):
        assert palette.INK in svg
        html = page.figure(svg)
        assert "var(--ink)" in html
        assert palette.INK not in html
        for ground in ("#ffffff", "white"):
            assert not re.search(rf'<path [^>]*style="fill: {ground}', svg)
    assert all(f"--{name}: {colour};" in page.page("t", "l", {}, []) for theme in palette.THEMES.values() for name, colour in theme.items())


def test_a_transparent_image_stays_transparent():
    clear = Image.new("RGBA", (300, 200), palette.TRANSPARENT)
    clear.paste(sample_image(size=(100, 100)), (20, 20))
    html = page.image(clear)
    data = base64.b64decode(re.search(r"data:image/webp;base64,([^\"]+)", html)[1])
    pixels = np.asarray(Image.open(BytesIO(data)).convert("RGBA"))
    assert pixels[5, 5, 3] == 0
    assert pixels[50, 50, 3] == 255
    assert "data:image/jpeg" in page.image(sample_image())


def test_an_image_larger_than_a_page_is_shrunk():
    for mode in ("RGB", "RGBA"):
        wide = Image.new(mode, (20_000, 100))
        data = base64.b64decode(re.search(r"base64,([^\"]+)", page.image(wide))[1])
        assert Image.open(BytesIO(data)).size == (2040, 10)
        assert wide.size == (20_000, 100)


@pytest.mark.parametrize(("make", "first"), [(page.tiles, 12), (page.examples, 3)])
def test_a_section_shows_its_first_images_and_unfolds_the_others(make, first):
    few, many = ([f"<i>{i}</i>" for i in range(count)] for count in (first + 1, first + 2))
    assert make(few, "None.") == "".join(few)  # one more takes no more room than the line that hides it
    assert make(many, "None.") == "".join(many[:first]) + page.details("2 more", "".join(many[first:]))
    assert make([], "None: <all> right.") == "<p>None: &lt;all&gt; right.</p>"


def test_images_of_a_row_stand_under_their_titles_and_share_the_page():
    html = page.row([("image", Image.new("RGB", (4000, 100))), ("<found>", sample_image())], "a <b>")
    wide, small = (Image.open(BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", html))
    assert wide.size == (1020, 26)
    assert small.size == sample_image().size
    assert "&lt;found&gt;<br>" in html
    assert "a &lt;b&gt;" in html
    parsed(html)
    parsed(page.key([("<sky>", "#0072b2")]))
    assert "max-width" not in page.natural("<svg/>")
    assert "natural" in page.natural("<svg/>")


def test_a_page_is_written_whole_or_the_failure_is_reported(tmp_path):
    messages, path = [], tmp_path / "report.html"
    assert page.write_page(path, lambda: "é – 中", messages.append)
    assert path.read_bytes() == "é – 中".encode()

    def fails():
        raise ZeroDivisionError("by zero\nat line 7")

    assert not page.write_page(path, fails, messages.append)
    assert not page.write_page(path, lambda: "caf\udce9", messages.append)  # which no file takes
    assert path.read_bytes() == "é – 中".encode()  # what was there is untouched, never empty
    (tmp_path / "folder").mkdir()
    assert not page.write_page(tmp_path / "folder", lambda: "text", messages.append)
    assert [line.count("\n") for line in messages] == [0, 0, 0]
    assert f"the report {path} could not be written (ZeroDivisionError: by zero)" in messages[0]
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []
