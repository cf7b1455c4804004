"""The classes of ImageNet-1K and ImageNet-22K, in the order of the published heads, and its evaluation sets; from timm's tables."""

import csv
import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

# Number of classes → timm's table of their synsets. Google's ImageNet-22K (BiT, ViT) has two synsets more than the other one.
SUBSETS = {
    1000: "imagenet_synsets.txt",
    11821: "imagenet12k_synsets.txt",
    21841: "imagenet22k_synsets.txt",
    21843: "imagenet21k_goog_synsets.txt",
}

# The sets that `sources/evaluation_sets.py` opens as `name:folder`, and the layout that each needs, as published.
EVALUATION_SETS = {
    "imagenet": "one folder per synset (n01440764 …)",
    "imagenet-real": "the validation images under their published names (ILSVRC2012_val_00000001.JPEG …), one folder per synset",
    "imagenet-v2": "folders 0 to 999",
    "imagenet-a": "folders named by its 200 synsets (n01498041 …)",
    "imagenet-r": "folders named by its 200 synsets (n01443537 …)",
    "imagenet-sketch": "one folder per synset (n01440764 …)",
    "imagenet-c": "corruption/severity/synset, as in gaussian_noise/1/n01440764, or the validation images, one folder per synset",
    "imagenet-c-bar": "corruption/severity/synset, as in blue_noise_sample/1/n01440764",
}


@functools.cache
def _lines(file: str) -> tuple[str, ...]:
    """Return the lines of one of timm's tables. timm itself, whose import takes more than a second, is not imported."""
    timm = importlib.util.find_spec("timm")
    assert timm is not None
    assert timm.origin is not None
    return tuple((Path(timm.origin).parent / "data" / "_info" / file).read_text("utf-8").splitlines())


@functools.cache
def _names() -> dict[str, str]:
    """Return the English names of all synsets, separated by commas."""
    return dict(csv.reader(_lines("imagenet_synset_to_lemma.txt"), delimiter="\t"))


def synsets(num_classes: int) -> list[str]:
    """Return WordNet identifiers such as n01440764, by label."""
    return list(_lines(SUBSETS[num_classes]))


def descriptions(num_classes: int) -> list[str]:
    """Return names in English, by label."""
    return [_names()[synset] for synset in synsets(num_classes)]


def readable(classes: Sequence[str]) -> list[str]:
    """Return class names for people to read: synsets become the first of their English names, other names stay."""
    return [_english(name) for name in classes]


def _english(name: str) -> str:
    return _names().get(name, name).split(",")[0] if re.fullmatch(r"n\d{8}", name) else name


def subset_synsets(letter: str) -> list[str]:
    """Return the 200 synsets of ImageNet-A ("a") or ImageNet-R ("r"), sorted."""
    return list(_lines(f"imagenet_{letter}_synsets.txt"))


def real_labels() -> list[list[int]]:
    """Return the ReaL labels of the validation images by their numbers minus one: none, one or several of the 1,000 classes.

    Source: Beyer et al., *Are we done with ImageNet?* (2020).
    """
    from timm.data import RealLabelsImagenet

    return list(RealLabelsImagenet(range(50_000)).real_labels.values())
