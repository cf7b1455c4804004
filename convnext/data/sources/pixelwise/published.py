"""Published datasets of images with masks, as distributed: ADE20K and Cityscapes."""

import os
from collections.abc import Sequence
from pathlib import Path

from convnext.data.annotations.mask_files import ClassLine, coding
from convnext.data.sources.pixelwise.mask_folder import ADE20K, CITYSCAPES, LEFT_IMAGES, MaskFolder
from convnext.data.walk import folders_in
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import read_lines

_ADE20K_PARTS = {"train": "training", "val": "validation"}

# The 19 classes of Cityscapes' benchmark with the values of their labelIds; the place here is their labelTrainIds.
# Source: cityscapesScripts, `helpers/labels.py` (Cordts et al., 2016).
_CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19, "traffic sign": 20,
    "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31,
    "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
_LAST_ID = 33


def open_cityscapes(where: str, classes: Sequence[str] | None = None) -> MaskFolder:
    """Return Cityscapes as distributed, the 19 classes of its benchmark: `cityscapes:train`, `cityscapes:val`, `cityscapes:/folder:train`.

    The folder holds leftImg8bit/ and gtFine/, or else gtCoarse/; by default it is `cityscapes` in `$CONVNEXT_DATA`, else in `data`.
    Masks are the `*_labelIds.png` of the download, of whose values the other classes are ignored, or else `*_labelTrainIds.png`.
    Source: Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding* (2016), https://www.cityscapes-dataset.com.

    Raises UsageError for another part, and ConvnextError if files are missing.
    """
    given, _, part = where.partition(":")[2].rpartition(":")
    root = Path(given or Path(os.environ.get("CONVNEXT_DATA") or "data", CITYSCAPES)).expanduser()
    if not (root / LEFT_IMAGES).is_dir():
        files = f"{LEFT_IMAGES}_trainvaltest.zip and gtFine_trainvaltest.zip"
        raise ConvnextError(f"no {root / LEFT_IMAGES}: unpack {files}, and name their folder, as in {CITYSCAPES}:/some/folder:{part}")
    if part not in (parts := folders_in(root / LEFT_IMAGES)):
        raise UsageError(f"{root / LEFT_IMAGES} has no part {part!r}{nearest(part, parts)}")
    kind = next((kind for kind in ("gtFine", "gtCoarse") if (root / kind / part).is_dir()), None)
    if kind is None:
        raise ConvnextError(f"no {root / 'gtFine' / part}: unpack gtFine_trainvaltest.zip beside {LEFT_IMAGES}")
    ids = dict(zip(_CITYSCAPES_IDS.values(), _CITYSCAPES_IDS, strict=True))
    entries = [ClassLine(ids.get(value, f"(value {value})"), is_ignored=value not in ids) for value in range(_LAST_ID + 1)]
    masks, values = root / kind / part, "labelIds"
    if next(masks.rglob("*_labelIds.png"), None) is None and next(masks.rglob("*_labelTrainIds.png"), None) is not None:
        entries, values = [ClassLine(name) for name in _CITYSCAPES_IDS], "labelTrainIds"
    ends = f"_{LEFT_IMAGES}", f"_{kind}_{values}"
    return MaskFolder(root / LEFT_IMAGES / part, masks, coding(entries, where, classes=classes), ends)


def open_ade20k(where: str, classes: Sequence[str] | None = None) -> MaskFolder:
    """Return ADE20K as distributed for scene parsing, 150 classes: `ade20k:train` or `ade20k:val`.

    Its folder is ADEChallengeData2016 in `$CONVNEXT_DATA`, by default `data`, or the one in `ade20k:/some/folder:train`.
    The value 0, which means everything else, is ignored; 1 to 150 become 0 to 149. Of a class's names the first is used.
    Source: Zhou et al., *Scene Parsing through ADE20K Dataset* (2017), http://sceneparsing.csail.mit.edu.

    Raises UsageError for another part, and ConvnextError if files are missing.
    """
    given, _, part = where.partition(":")[2].rpartition(":")
    if part not in _ADE20K_PARTS:
        raise UsageError(f"unknown dataset {where!r}{nearest(where, [f'{ADE20K}:{part}' for part in _ADE20K_PARTS])}")
    root = Path(given or Path(os.environ.get("CONVNEXT_DATA") or "data", "ADEChallengeData2016")).expanduser()
    images, masks, names = root / "images" / _ADE20K_PARTS[part], root / "annotations" / _ADE20K_PARTS[part], root / "objectInfo150.txt"
    if absent := [path for path in (images, masks, names) if not path.exists()]:
        raise ConvnextError(
            f"no {absent[0]}: unpack ADEChallengeData2016.zip and name its folder, as in {ADE20K}:/some/ADEChallengeData2016:{part}"
        )
    lines = read_lines(names)[1:]
    entries = [ClassLine("(other)", is_ignored=True), *(ClassLine(line.split("\t")[-1].split(",")[0].strip()) for line in lines)]
    return MaskFolder(images, masks, coding(entries, str(names), classes=classes))
