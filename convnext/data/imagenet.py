"""The classes of ImageNet-1K and ImageNet-22K, in the order of the published heads, and its evaluation sets; from timm's tables."""

import functools
import importlib.resources
from collections.abc import Sequence
from typing import Protocol

# Number of classes → timm's name. Google's ImageNet-22K (BiT, ViT) has two synsets more than the other one.
SUBSETS = {1000: "imagenet-1k", 11821: "imagenet-12k", 21841: "imagenet-22k", 21843: "imagenet-21k-goog"}

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


class _Info(Protocol):
    """timm's `ImageNetInfo`."""

    def label_names(self) -> Sequence[str]: ...
    def index_to_description(self, index: int) -> str: ...
    def label_name_to_description(self, label: str) -> str: ...


@functools.cache
def _info(num_classes: int) -> _Info:
    from timm.data import ImageNetInfo

    return ImageNetInfo(SUBSETS[num_classes])


def synsets(num_classes: int) -> list[str]:
    """Return WordNet identifiers such as n01440764, by label."""
    return list(_info(num_classes).label_names())


def descriptions(num_classes: int) -> list[str]:
    """Return names in English, by label."""
    return [_info(num_classes).index_to_description(i) for i in range(num_classes)]


def readable(classes: Sequence[str]) -> list[str]:
    """Return class names for people to read: synsets become the first of their English names, other names stay."""
    return [_english(name) for name in classes]


def _english(name: str) -> str:
    try:
        return str(_info(1000).label_name_to_description(name)).split(",")[0]  # timm's table has the names of all synsets
    except KeyError:
        return name


def subset_synsets(letter: str) -> list[str]:
    """Return the 200 synsets of ImageNet-A ("a") or ImageNet-R ("r"), sorted."""
    return (importlib.resources.files("timm.data") / "_info" / f"imagenet_{letter}_synsets.txt").read_text("utf-8").split()


def real_labels() -> list[list[int]]:
    """Return the ReaL labels of the validation images by their numbers minus one: none, one or several of the 1,000 classes.

    Source: Beyer et al., *Are we done with ImageNet?* (2020).
    """
    from timm.data import RealLabelsImagenet

    return list(RealLabelsImagenet(range(50_000)).real_labels.values())
