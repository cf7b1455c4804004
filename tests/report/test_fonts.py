import logging

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from convnext.report import fonts
from convnext.report.drawing import draw
from convnext.report.fonts import font_for

NAMES = "Ωμέγα äé"  # whose letters Matplotlib's DejaVu Sans has and Pillow's own font lacks


@pytest.fixture(autouse=True)
def clean():
    for function in (fonts._font_for, fonts._system_font, fonts._paths):
        function.cache_clear()
    yield
    for function in (fonts._font_for, fonts._system_font, fonts._paths):
        function.cache_clear()


@pytest.fixture
def installed(monkeypatch):
    """A machine with no fonts but those of Matplotlib and Pillow."""
    monkeypatch.setattr(font_manager, "findSystemFonts", list)


def ink(font, text):
    image = Image.new("L", (200, 40))
    ImageDraw.Draw(image).text((2, 2), text, 255, font)
    return np.asarray(image).tobytes()


def test_english_names_have_pillows_font():
    assert ink(font_for(16, ["ant", "1 %"]), "ant") == ink(ImageFont.load_default(16), "ant")


def test_letters_that_it_lacks_come_from_a_font_of_the_machine(installed, caplog):
    letters = {ink(font_for(16, [NAMES]), one) for one in NAMES}
    assert len(letters) == len(set(NAMES))  # each has its own shape, not the box of a missing one
    assert not caplog.records


def test_letters_that_no_font_has_are_reported_once(installed, caplog):
    with caplog.at_level(logging.WARNING, "convnext"):
        for size in (12, 16):
            font_for(size, ["中", "ant"])
    (record,) = caplog.records
    assert record.getMessage() == (
        "no font on this machine has 中: names are drawn with boxes there; install one, of fonts-noto or fonts-noto-cjk"
    )


def test_drawings_use_it(installed):
    image = Image.new("RGB", (200, 100))
    objects = {"boxes": torch.tensor([[10, 30, 150, 90]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    first, second = (np.asarray(draw(image, objects, [name])) for name in ("Ωμ", "μΩ"))
    assert not np.array_equal(first, second)
