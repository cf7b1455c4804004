"""The palette: distances between colours (CIEDE2000) for normal sight and for two kinds of colour blindness."""

import re
from importlib.resources import files
from itertools import combinations, product

import numpy as np
import pytest

from convnext.paper.scatter import styles
from convnext.report import palette, plots

# Machado, Oliveira and Fernandes (2009), severity 1.0: from linear RGB to what protanopes and deuteranopes see.
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1, 1.089])
PAGE = files("convnext.serve") / "web"


def linear(colours):
    levels = np.array([palette.rgb(colour) for colour in colours]) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def lab(colours, sight=None):
    seen = linear(colours) @ np.array(np.eye(3) if sight is None else sight).T
    ratio = seen.clip(0, 1) @ XYZ.T / WHITE
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def ciede2000(first, second):
    """The distance of colours in CIE Lab (..., 3), after Sharma, Wu and Dalal (2005)."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    a1, a2 = (a * (1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25**7))) for a in (a1, a2))
    c1, c2, h1, h2 = np.hypot(a1, b1), np.hypot(a2, b2), np.arctan2(b1, a1), np.arctan2(b2, a2)
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi
    light, chroma, hue = (l1 + l2) / 2 - 50, (c1 + c2) / 2, h1 + turn / 2
    waves = ((0.17, 1, 30), (-0.24, 2, 0), (-0.32, 3, -6), (0.2, 4, 63))
    t = 1 - sum(size * np.cos(times * hue - np.radians(shift)) for size, times, shift in waves)
    x = (l2 - l1) / (1 + 0.015 * light**2 / np.sqrt(20 + light**2))
    y = (c2 - c1) / (1 + 0.045 * chroma)
    z = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * chroma * t)
    bend = np.radians(60) * np.exp(-(((np.degrees(hue) % 360 - 275) / 25) ** 2))
    return np.sqrt(x**2 + y**2 + z**2 - 2 * np.sin(bend) * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * y * z)


def contrast(colours, ground):
    light, other = linear(colours) @ XYZ[1], linear([ground]) @ XYZ[1]
    return (np.maximum(light, other) + 0.05) / (np.minimum(light, other) + 0.05)


def test_the_conversion_to_lab_is_right():
    assert lab(["#ffffff", "#ff0000"]) == pytest.approx(np.array([[100, 0, 0], [53.2, 80.1, 67.2]]), abs=0.1)


@pytest.mark.parametrize(  # of the published pairs
    ("first", "second", "distance"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
        ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_distance_is_that_of_the_standard(first, second, distance):
    assert ciede2000(np.array(first), np.array(second)) == pytest.approx(distance, abs=1e-4)


# The smallest distance between the first colours: 1 can just be seen when they touch.
@pytest.mark.parametrize("sight", [None, PROTANOPIA, DEUTERANOPIA], ids=["normal", "protanopia", "deuteranopia"])
@pytest.mark.parametrize(("count", "apart"), [(3, 20), (7, 12.3), (12, 12.2), (20, 9.6), (40, 6.8), (150, 3.1), (255, 2.2)])
def test_colours_are_apart_for_every_sight(sight, count, apart):
    seen = lab(palette.CLASSES[:count], sight)
    assert (ciede2000(seen[:, None], seen) + 999 * np.eye(count)).min() >= apart


def test_the_first_twelve_are_further_apart_for_normal_sight_and_none_looks_like_ignored_pixels():
    seen = lab(palette.CLASSES[:12])
    assert (ciede2000(seen[:, None], seen) + 999 * np.eye(12)).min() >= 22
    for sight in (None, PROTANOPIA, DEUTERANOPIA):
        assert ciede2000(lab(palette.CLASSES[:12], sight), lab([palette.IGNORED], sight)).min() >= 12


@pytest.mark.parametrize("sight", [None, PROTANOPIA, DEUTERANOPIA], ids=["normal", "protanopia", "deuteranopia"])
def test_boxes_show_what_is_wrong_with_them(sight):
    """Missed objects and false detections are never in one image."""
    seen = lab(palette.ERRORS.values(), sight)
    distances = dict(zip(product(palette.ERRORS, repeat=2), ciede2000(seen[:, None], seen).flatten(), strict=True))
    assert min(distances[pair] for pair in combinations(palette.ERRORS, 2) if pair != ("missed", "false")) >= 12


def test_series_are_visible_on_a_light_and_on_a_dark_page():
    for theme in palette.THEMES.values():
        assert contrast([*palette.SERIES, palette.GREY], theme["card"]).min() >= 2.2
        assert contrast([theme["ink"], theme["soft"], theme["accent"]], theme["card"]).min() >= 4.5
        assert contrast([theme["ink"], theme["soft"], theme["accent"]], theme["ground"]).min() >= 4.5


def test_class_colours_are_distinct_and_not_grey():
    colours = palette.class_colours()
    assert (colours.shape, colours.dtype) == ((256, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == 256
    assert colours[:3].tolist() == [[0, 114, 178], [213, 94, 0], [240, 135, 150]]
    chroma = np.linalg.norm(lab(palette.CLASSES)[:, 1:], axis=1)
    assert chroma.min() >= 20  # none looks like an ignored pixel
    assert palette.class_colour(255) == palette.class_colour(0)


def test_seven_families_have_colours_and_markers_of_their_own():
    found = styles([f"family {i}" for i in range(7)])
    assert len({colour for colour, _ in found.values()}) == len({marker for _, marker in found.values()}) == 7
    assert [plots.style(i)[0] for i in range(7)] == [colour for colour, _ in found.values()]


def test_the_services_page_has_the_same_colours():
    css, script = PAGE.joinpath("page.css").read_text("utf-8"), PAGE.joinpath("draw.js").read_text("utf-8")
    written = "".join(re.findall(r'"((?:[0-9a-f]{6}){3,})"', script))
    assert tuple(f"#{written[i : i + 6]}" for i in range(0, len(written), 6)) == palette.CLASSES
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    for text, theme in ((light, palette.THEMES["light"]), (dark, palette.THEMES["dark"])):
        assert theme.items() <= dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", text)).items()


def test_text_is_legible_on_every_ground():
    css = PAGE.joinpath("page.css").read_text("utf-8")
    for text in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        theme = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", text))
        for ground in ("ground", "card", "bar"):
            assert contrast([theme[name] for name in ("ink", "soft", "accent", "bad")], theme[ground]).min() >= 4.495, ground
    names = {"black": "#000000", "white": "#ffffff"}
    assert min(contrast([colour], names[palette.text_on(palette.rgb(colour))])[0] for colour in palette.CLASSES) >= 4.5
