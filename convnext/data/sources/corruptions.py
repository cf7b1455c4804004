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
from convnext.data.sources.base import ClassifySource
from convnext.data.sources.folder import ImageFolder
from convnext.data.sources.open import open_source
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
_LIBRARY = "imagecorruptions-imaug"  # the fork of imagecorruptions that runs with today's NumPy and scikit-image
_OWN_GENERATOR = ("impulse_noise", "glass_blur")  # these take a seed; the others draw from NumPy's global generator
_SEED = 0x0C0  # of the generated corruptions: always the same, so that results can be compared


class CorruptedImages:
    """Sources one after the other, one for each corruption and severity.

    The images are central squares already, 224 pixels a side as published: evaluation must not crop them again.
    """

    def __init__(self, parts: list[tuple[str, int]], sources: Sequence[ClassifySource]) -> None:
        self.parts, self.sources = parts, sources
        self.classes = sources[0].classes
        self.skipped = list(dict.fromkeys(name for source in sources for name in source.skipped))
        self.remarks = list(dict.fromkeys(remark for source in sources for remark in source.remarks))
        self._ends = np.cumsum([len(source) for source in sources])

    def part(self, index: int) -> int:
        """Return the number in `parts` of the corruption and severity of an image."""
        return int(np.searchsorted(self._ends, index, side="right"))

    def _find(self, index: int) -> tuple[ClassifySource, int]:
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

    def key(self, index: int) -> str:
        """Return corruption and severity before the image's own key."""
        (corruption, severity), (source, at) = self.parts[self.part(index)], self._find(index)
        return f"{corruption}/{severity}/{source.key(at)}"

    def label_bytes(self, index: int) -> bytes:
        source, at = self._find(index)
        return source.label_bytes(at)


class GeneratedCorruption:
    """Images corrupted when they are read, in the steps of the published ones: cropped to 224 pixels, corrupted, saved as JPEG.

    An image is a function of the corruption, the severity and the position alone. The code is imagecorruptions', Hendrycks and
    Dietterich's without ImageMagick; its noise differs from that in the published files.
    """

    def __init__(self, source: ClassifySource, corruption: str, severity: int) -> None:
        self.source, self.corruption, self.severity = source, corruption, severity
        self.classes, self.skipped, self.remarks = source.classes, source.skipped, source.remarks

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Image.Image:
        """Return the corrupted image at a position, 224 x 224 RGB. Raises CorruptImageError as its source does."""
        from imagecorruptions import corrupt
        from torchvision.transforms import v2

        crop = v2.Compose([v2.Resize(256, v2.InterpolationMode.BILINEAR), v2.CenterCrop(224)])
        pixels = np.asarray(crop(shown(self.source.read(index))))
        seed = (_SEED, CORRUPTIONS["c"].index(self.corruption), self.severity, index)
        own = {"seed": int(np.random.SeedSequence(seed).generate_state(1)[0])} if self.corruption in _OWN_GENERATOR else {}
        with seeded(*seed):
            corrupted = corrupt(pixels, self.severity, self.corruption, **own)
        saved = BytesIO()
        Image.fromarray(corrupted).save(saved, "JPEG", quality=85, optimize=True)
        return Image.open(saved, formats=("JPEG",)).convert("RGB")

    def pixels(self, index: int) -> Tensor:
        """Return the image as a uint8 (3, 224, 224) tensor."""
        return to_pixels(self.read(index))

    def label(self, index: int) -> int:
        """Return the position in `classes` of the image's class."""
        return self.source.label(index)

    def name(self, index: int) -> str:
        """Return what reports call the image: the uncorrupted image, the corruption and its severity."""
        return f"{self.source.name(index)} ({self.corruption} {self.severity})"

    def key(self, index: int) -> str:
        """Return the key of the uncorrupted image."""
        return self.source.key(index)

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return self.source.label_bytes(index)


def open_corrupted(folder: str, kind: str, classes: Sequence[str]) -> tuple[CorruptedImages, list[str]]:
    """Return the images of ImageNet-C ("c") or ImageNet-C-bar ("c-bar") in a folder, and remarks for the user.

    If ImageNet-C's folder holds images by class instead, the corruptions are generated from these.

    Raises ConvnextError that names the missing corruptions and severities if there are any, and UsageError without such a folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"no folder {root}")
    folders = {name: _folder(root, name) for name in CORRUPTIONS[kind]}
    if not any(path.is_dir() for path in folders.values()):
        if kind != "c":
            raise ConvnextError(f"{root} has none of {', '.join(CORRUPTIONS[kind])}, and no maintained library generates these")
        return _generated(folder, classes)
    parts = [(name, severity) for name in CORRUPTIONS[kind] for severity in SEVERITIES]
    paths = [folders[name] / str(severity) for name, severity in parts]
    if missing := [str(path.relative_to(root)) for path in paths if not path.is_dir()]:
        some = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ConvnextError(f"{root} lacks {some} ({len(missing)} of {len(paths)}): the mean is over all, so unpack these too")
    sources = [ImageFolder(path, classes) for path in paths]
    for source in sources:
        source.paths = [sys.intern(path) for path in source.paths]  # 50,000 names, the same in each of 75 folders
    remarks = []
    if len({len(source) for source in sources}) > 1:
        counts = [(len(source), f"{name}/{severity}") for source, (name, severity) in zip(sources, parts, strict=True)]
        (fewest, first), (most, last) = min(counts), max(counts)
        remarks.append(f"the parts differ in their number of images: {first} has {fewest}, {last} has {most}")
    return CorruptedImages(parts, sources), remarks


def _folder(root: Path, corruption: str) -> Path:
    # ImageNet-C is published as archives of several corruptions, which some people unpack into folders such as noise/.
    below = [path for path in root.glob(f"*/{corruption}") if path.is_dir()]
    return below[0] if below else root / corruption


def _generated(folder: str, classes: Sequence[str]) -> tuple[CorruptedImages, list[str]]:
    source = open_source(folder, classes)
    version = _library_version()
    parts = [(name, severity) for name in CORRUPTIONS["c"] for severity in SEVERITIES]
    remark = f"the corruptions are not the published files: {_LIBRARY} {version} generated them from the images of {folder}"
    return CorruptedImages(parts, [GeneratedCorruption(source, *part) for part in parts]), [remark]


def _library_version() -> str:
    try:
        import imagecorruptions  # noqa: F401  only to find out whether it can be imported

        return importlib.metadata.version(_LIBRARY)
    except ImportError as error:
        raise UsageError(
            f"the corruptions of ImageNet-C are not in the folder, and generating them needs {_LIBRARY} ({error}): "
            "run pip install '.[robustness]' in a clone of convnext, or name the folder of the published files"
        ) from error
