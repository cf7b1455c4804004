"""ImageNet-C and ImageNet-C-bar: images that were corrupted in some ways at five severities each.

Sources: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations* (ICLR 2019);
Mintun et al., *On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness* (NeurIPS 2021).
"""

import importlib.metadata
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage, shown
from convnext.data.images import to_pixels
from convnext.data.randomness import seeded
from convnext.data.sources.folder import ImageFolder
from convnext.data.sources.open import Source, open_source
from convnext.errors import ConvnextError, UsageError

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = {
    "c": (
        *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    ),
    "c-bar": (
        *("blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves"),
        *("inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles"),
    ),
}
_LIBRARY = "imagecorruptions-imaug"  # of the forks of imagecorruptions the one that runs with today's NumPy and scikit-image
_OWN_GENERATOR = ("impulse_noise", "glass_blur")  # these take a seed, the others draw from NumPy's global generator
_SEED = 0x0C0  # of the generated corruptions, so that everybody who generates them gets the same


class CorruptedImages:
    """Sources one after the other, one for each corruption and severity.

    The images are the central squares already, 224 pixels a side as published: to be taken whole.
    """

    def __init__(self, parts: list[tuple[str, int]], sources: Sequence[Source]) -> None:
        self.parts, self.sources = parts, sources
        self.classes = sources[0].classes
        self.skipped = list(dict.fromkeys(name for source in sources for name in source.skipped))
        self.remarks = list(dict.fromkeys(remark for source in sources for remark in source.remarks))
        self._ends = np.cumsum([len(source) for source in sources])

    def part(self, index: int) -> int:
        """Which of `parts` that position belongs to."""
        return int(np.searchsorted(self._ends, index, side="right"))

    def _find(self, index: int) -> tuple[Source, int]:
        part = self.part(index)
        return self.sources[part], index - (int(self._ends[part - 1]) if part else 0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> Image.Image | DeepImage:
        source, at = self._find(index)
        return source.read(at)

    def pixels(self, index: int) -> Tensor | DeepImage:
        source, at = self._find(index)
        return source.pixels(at)

    def label(self, index: int) -> int:
        source, at = self._find(index)
        return source.label(at)

    def name(self, index: int) -> str:
        source, at = self._find(index)
        return source.name(at)


class Generated:
    """Images corrupted as they are read, as the published ones were made: cropped to 224 pixels, corrupted, saved as JPEG.

    A function of the corruption, the severity and the position alone. The corruptions are imagecorruptions', Hendrycks and
    Dietterich's code made free of ImageMagick; the noise is other than the published files'.
    """

    def __init__(self, source: Source, corruption: str, severity: int) -> None:
        self.source, self.corruption, self.severity = source, corruption, severity
        self.classes, self.skipped, self.remarks = source.classes, source.skipped, source.remarks

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Image.Image:
        """The corrupted image of that position, 224 x 224 RGB. Raises CorruptImageError as its source does."""
        from imagecorruptions import corrupt
        from torchvision.transforms import v2

        crop = v2.Compose([v2.Resize(256, v2.InterpolationMode.BILINEAR), v2.CenterCrop(224)])
        pixels = np.asarray(crop(shown(self.source.read(index))))
        place = (_SEED, CORRUPTIONS["c"].index(self.corruption), self.severity, index)
        # These two draw from generators of their own, the others from NumPy's global one.
        own = (
            {"seed": int(np.random.SeedSequence(place).generate_state(1)[0])} if self.corruption in ("impulse_noise", "glass_blur") else {}
        )
        with seeded(*place):
            corrupted = corrupt(pixels, self.severity, self.corruption, **own)
        saved = BytesIO()
        Image.fromarray(corrupted).save(saved, "JPEG", quality=85, optimize=True)
        return Image.open(saved, formats=("JPEG",)).convert("RGB")

    def pixels(self, index: int) -> Tensor:
        """The same as a uint8 (3, 224, 224) tensor."""
        return to_pixels(self.read(index))

    def label(self, index: int) -> int:
        """The label of that position."""
        return self.source.label(index)

    def name(self, index: int) -> str:
        """What to call that position in a report: the uncorrupted image, the corruption and its severity."""
        return f"{self.source.name(index)} ({self.corruption} {self.severity})"


def open_corrupted(folder: str, kind: str, classes: Sequence[str]) -> tuple[CorruptedImages, list[str]]:
    """The images of ImageNet-C ("c") or ImageNet-C-bar ("c-bar") in a folder, and what is to be told of them.

    Where ImageNet-C's folder holds images by class instead, the corruptions are generated from these.

    Raises ConvnextError, naming them, if some of the corruptions or severities are missing, and UsageError without such a folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"no folder {root}")
    folders = {name: _folder(root, name) for name in CORRUPTIONS[kind]}
    if not any(path.is_dir() for path in folders.values()):
        if kind != "c":
            raise ConvnextError(f"{root} has none of {', '.join(CORRUPTIONS[kind])}, and no kept library generates these")
        return _generated(folder, classes)
    parts = [(name, severity) for name in CORRUPTIONS[kind] for severity in SEVERITIES]
    paths = [folders[name] / str(severity) for name, severity in parts]
    if missing := [str(path.relative_to(root)) for path in paths if not path.is_dir()]:
        some = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ConvnextError(f"{root} lacks {some} ({len(missing)} of {len(paths)}): the mean is over all of them, so unpack these too")
    sources = [ImageFolder(path, classes) for path in paths]
    for source in sources:
        source.paths = [sys.intern(path) for path in source.paths]  # 50,000 names, the same in each of 75 folders
    told = []
    if len({len(source) for source in sources}) > 1:
        counts = [(len(source), f"{name}/{severity}") for source, (name, severity) in zip(sources, parts, strict=True)]
        (least, first), (most, last) = min(counts), max(counts)
        told.append(f"the parts have not the same number of images: {first} has {least}, {last} {most}")
    return CorruptedImages(parts, sources), told


def _folder(root: Path, corruption: str) -> Path:
    # ImageNet-C comes in archives of several corruptions, which some unpack each into a folder of its own, such as noise/.
    below = [path for path in root.glob(f"*/{corruption}") if path.is_dir()]
    return below[0] if below else root / corruption


def _generated(folder: str, classes: Sequence[str]) -> tuple[CorruptedImages, list[str]]:
    source = open_source(folder, classes)
    version = _library_version()
    parts = [(name, severity) for name in CORRUPTIONS["c"] for severity in SEVERITIES]
    told = f"the corruptions are not the published files: {_LIBRARY} {version} generated them from the images of {folder}"
    return CorruptedImages(parts, [Generated(source, *part) for part in parts]), [told]


def _library_version() -> str:
    try:
        import imagecorruptions  # noqa: F401  whether it can be imported

        return importlib.metadata.version(_LIBRARY)
    except ImportError as error:
        raise UsageError(
            f"the corruptions of ImageNet-C are not on the disk, and generating them needs {_LIBRARY} ({error}): "
            "pip install 'convnext[robustness]', or name the folder of the published files"
        ) from error
