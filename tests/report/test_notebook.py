import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
from helpers import sample_image
from PIL import Image

from convnext.report import notebook, plots
from convnext.report.notebook import Bar, Thumbnail

LINES = [{"kind": "train", "step": i, "epoch": i / 2, "loss": 1 / i, "lr": 0.1} for i in range(1, 5)]


class Sources(HTMLParser):
    """Notes what is loaded."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found += [value for key, value in attributes if key == "src"]


def test_a_prediction_is_an_image_with_bars_and_escaped_names():
    html = notebook.prediction(sample_image(), [Bar("<b>ants", 0.934), Bar("x" * 300, 7.0)], "\x1b[0m& more")
    assert "&lt;b&gt;ants" in html
    assert "93.4%" in html
    assert "100.0%" in html  # no bar is longer than its ground
    assert "x" * 50 not in html
    assert "\x1b" not in html
    (source,) = Sources(html).found
    assert Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))).size == (48, 40)
    assert Sources(notebook.prediction(None, [], "2.5")).found == []


def test_a_thumbnail_has_at_most_640_pixels_a_side_and_small_images_keep_their_pixels():
    large = Thumbnail.of(sample_image(size=(1280, 320)))
    assert large.open().size == (640, 160)
    assert large.scale() == (0.5, 0.5)
    small = Thumbnail.of(sample_image())
    assert np.array_equal(np.asarray(small.open()), np.asarray(sample_image()))


def test_a_scaled_mask_keeps_the_values_of_its_nearest_pixels():
    mask = np.array([[1, 2], [3, 255]], np.uint8)
    assert notebook.scaled(mask, (4, 2)).tolist() == [[1, 1, 2, 2], [3, 3, 255, 255]]
    assert notebook.scaled(np.kron(mask, np.ones((3, 3), np.uint8)), (2, 2)).tolist() == mask.tolist()


def test_drawings_of_one_document_share_no_names():
    html = notebook.result("A <run>", "lead", {"accuracy": "90 %"}, plots.curves(LINES, "top1"), 0.5, ["<line>"])
    names = re.findall(r'\bid="([^"]+)"', html)
    assert len(set(names)) == len(names)
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html)[0]) - {""} <= set(names)
    again = notebook.result("A", "", {}, plots.curves(LINES, "top1"))
    assert not set(names) & set(re.findall(r'\bid="([^"]+)"', again))
    assert "A &lt;run&gt;" in html
    assert "&lt;line&gt;" in html
    assert "width: 50.0%" in html
    assert "var(--ink)" in html
    assert "--ink: currentColor" in html


def test_several_predictions_stand_under_their_names():
    html = notebook.gallery([("<a>.jpg", notebook.text("ants"))], 3)
    assert "&lt;a&gt;.jpg" in html
    assert "ants" in html
    assert "and 3 more" in html
