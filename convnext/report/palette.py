"""The colours of everything that is drawn: curves, boxes, masks, figures, report pages and the service's page.

People with any kind of colour vision can tell the colours apart. The measure is CIEDE2000 for normal sight, protanopia and deuteranopia
(Machado et al., 2009). The first two are Okabe and Ito's blue and vermilion (2008); the first twelve were searched together with the grey
of ignored pixels, so that the smallest distance in any sight is as large as possible (12.2, and 22.3 for normal sight). The first seven of
them are those that are visible on white and on a dark page. Each further colour is as far from all before it as possible. Very dark, very
light and greyish colours are not used: they disappear in photographs or look like ignored pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np

_CLASSES = (  # six hexadecimal digits per colour
    "0072b2d55e00f08796b4001ea578ff3c875a00a5b4ffb400f0c3ff69f0d2d2e196784b7869002d0000d22d2d5ab4a55ac35a87690000ff69c3a5a5f0005a4b"
    "5a3c96d24b4b780fff4bb496a50f4bb47878008787e18700ffe169c33c0fd200c3d2b487a54bf096e1e1f0b4b44b0087782d2d5a783c969669ffb4691ed2e1"
    "e10f96d278a5c369d2783c00b4f0c3695a2d782d5a00d2a5b43c69870f788778a5696996b4874be1a5c3874b5a2d5a3c1e3cc3b496d2d2f0003cb41ef07878"
    "b400785a1e1e00e11ed2b4ffd23c5a4b872da56978f0a5e1692d3c965a7887e1a5b4b44bffd2f069e178ff2dff694be10fb4b45a1e3c001ea5d24b2dd27887"
    "4b2de10096e178b4a5781e000087960069694b784b5a87690fd2874b2d4b871e1ec369693cffa5f0b4c3695a875aa5a51e4b691ea587873c5a3cb478c3f087"
    "87e1d27800b44b693ca5872d2d3c6900d2c30f4b3c2d4b2d694ba5875ad2f0c34be1873c694b872d96875a78b4f02d873c2d96962dff5ad2b4871e4b3c96b4"
    "0f2d69c3695a4b96a54bc396a5000087690f4b874bf0d2ffb4965af087f000694b0000ffff8778694b2df0a56978004be169e1965aa5872d3c3c785a2da5c3"
    "8769d2b4a5d2e1b4d2e11e780078a5e17896a5f0e1784b1e963c691e782d00d2d269a596b4e1c3c35a695a87b45a2d5a3cff5af0c396e196b44be1b42de1c3"
    "f03c78966996693cd2690f87e1962d69f0b4ff96a569b487f04bc396873c00ffd2e187a587f0f04b2d0f87d2f0a54b5a9678c3873c96e1e14b1ea5e1b4c396"
    "ff4b78d287c3693c8769870fd287fff0b4f0b4875aff87693c87a500c3b4f01e964b00e17887d25a0f5ac3b40078c3785a691ec31e3c4b4b1ed2d287003c2d"
    "5a69c35a00690f69b4e196ffe18787e1a5d2692d875a69f03c0f96d22d4bb42d00962da569e196ffa55af05a4b870fa5691e1ec3964b1e2dc3a54bc30000b4"
    "b4870fc35a3cb487d2f000a5a52d4ba51ee15a3c690fc3e1ffc378d21e87e11e1e6978ff4b1e782d96693c3c78f0e1a5873c3c3c873cd278f0c3e1b4b45a5a"
    "96a56978000f7878e1"
)
CLASSES = tuple(f"#{_CLASSES[i : i + 6]}" for i in range(0, len(_CLASSES), 6))  # 255; further classes begin anew
SERIES = CLASSES[:7]  # of curves and families: visible on white and on a dark page
MARKERS = "osD^v<>PX"  # of matplotlib, one per family
BLUE, ORANGE = CLASSES[0], CLASSES[1]  # of one curve beside another
GREY = "#748296"  # of what matters less; readable on white and on a dark page
IGNORED = "#696969"  # of pixels without a label
TRANSPARENT = (255, 255, 255, 0)  # the ground of sheets: white where transparency is lost
ERRORS: Mapping[str, str] = {  # of boxes by what is right or wrong with them; missed objects and false detections are never in one image
    "right": CLASSES[0],
    "missed": CLASSES[7],
    "false": CLASSES[1],
    "confused": CLASSES[2],
    "ignored": IGNORED,
}
RIGHT, WRONG = "#1a7f37", "#cf222e"  # of titles over images on white

# The names are those of CSS variables; `light` is also the colour of figures in files.
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {"ink": "#1d2733", "soft": "#5b6878", "line": "#dfe5ec", "ground": "#f6f8fa", "card": "#ffffff", "accent": "#0b6e99"},
    "dark": {"ink": "#e4e9ef", "soft": "#93a1b3", "line": "#2e3844", "ground": "#14191f", "card": "#1c232b", "accent": "#5cb8e0"},
}
INK, SOFT = THEMES["light"]["ink"], THEMES["light"]["soft"]


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a colour such as "#0072b2"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def class_colour(label: int) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a class by its index."""
    return rgb(CLASSES[label % len(CLASSES)])


def mask_colours(count: int, given: Sequence[int | Sequence[int]] | None) -> list[tuple[int, int, int]]:
    """Return red, green and blue, 0 to 255, of each class in masks of colours: those that the data gives, or else ours."""
    own = [(one[0], one[1], one[2]) for one in given or () if not isinstance(one, int)]
    return own if len(own) == count else [class_colour(label) for label in range(count)]


def class_colours() -> np.ndarray:
    """Return the colours of the classes 0 to 254 and, as the last, of ignored pixels: uint8 (256, 3)."""
    return np.array([rgb(colour) for colour in (*CLASSES, IGNORED)], np.uint8)


def text_on(colour: tuple[int, int, int]) -> str:
    """Return "black" or "white", whichever is easier to read on a colour."""
    red, green, blue = (value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour)
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"  # where both have the same contrast (WCAG 2)
