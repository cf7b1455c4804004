"""The colours of everything that is drawn: curves, boxes, masks, figures, report pages and the service's page.

People with any kind of colour vision can tell the colours apart. The first six are Okabe and Ito's (2008). Each one from the eighth on
is as far from all before it as possible, by the smallest of its distances in CIE Lab for normal sight, protanopia and deuteranopia
(Machado et al., 2009). Very dark, very light and greyish colours are not used: they disappear in photographs or look like ignored pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np

_CLASSES = (  # six hexadecimal digits per colour
    "0072b2d55e00009e73cc79a7e69f0056b4e9964b2d4b4bff87f0962d1e963c2d5a96f0ff2d87ff5af0c3c3f069780f2d4bb45affe10f1e0fc3a500872d5ac3"
    "691e004ba5ff3cc3d25ac387ff694bb43c0f0f4bd2005a875ae1d2693c5a965a4b69c3a50fe1694b69ff96d2ff5a007896d23c9687c3a569d2872d00690f3c"
    "1effb4873c4b872d2d00969678962dc3696969ff875a2d96002db42d963c5ad278a53ca50f69e1b469879669a54ba5b43ce1a569e196874b7869b44b69c3c3"
    "780f693c3cb4f0e14b00e1e15ab4ff00875a4bb4873c96ff872d1ee15a2d0fc3e13cb469005a964be15a003ce10096e178001ea55a2d1e78e169c3b4f0d278"
    "5ae1c3c34b00e1871effb43c0f5a4b5a0f6996e1fff04b960f5af00fa5d296f0f00f4ba5d2d20096c3ffa53c3ca5f0e15a1e4b781e3ce13c5af08769962d69"
    "d2694bb43ce10069c3b4b43c0f3cd25a3c782da5e10078c32db4b4b43c694b0f87782d693c78ffa52d1ef0b45a5aff4b965a871eb47869870f8778c31e0fb4"
    "69c396783cb469c378d22d5a961e3cc300c38787b4008778c3b41e3c96a5004b87c35a3c00699600784b2de1b43ca54b2dffc34b00a5c33c4bf0875ab44bb4"
    "963c5ad23c69a5a52d87d2f078f08769005a1ea5a54ba5f0b43c1e69e1872d3ca5692d5a5a4b78c3e1a55a1e789696c3a56978a52d00d278d2005ab4690fc3"
    "0087d25af078e1693c875a78c30f96b478960096874bc3695a78b43c96f0ff3c1e2d872d0f3cc3695aa54b1ea5a50f9678f05a4bd28787001e3c2d8769b496"
    "c378873c87f05a2d4b69b4a587c3f0ffb44b2d3c0f4bd2b40f4be169d296ff873c5a2d784bd2c387f0d28700a53c5ad25a1e965ad2a52df0b42d69d2691e0f"
    "783c3c4bb4c31ed2d2002dd2b4004b0087a500b4f000d2e15a69f00f961e2df069f0c3695a2d69870f2d4b78f0690f2de13c1e69d25af0008769e1f0ff5ab4"
    "6969964bb43c4b87e196a578b42d2d5a3cc3ffb42da55a78b4b44b963cd21e96b4b4f0a569b4d25ab4e10069a5b4f0b45a693cff3c2d5aff69695af0b4c378"
    "96e14b69965ac396c3"
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
    "missed": CLASSES[4],
    "false": CLASSES[1],
    "confused": CLASSES[3],
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
