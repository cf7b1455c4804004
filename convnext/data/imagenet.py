"""The classes of ImageNet-1K and ImageNet-22K, in the order of the published heads, and what is known of its evaluation sets.

From the tables that timm ships.
"""

import functools
import importlib.resources
from collections.abc import Sequence
from typing import Any

# Number of classes → timm's name. Google's ImageNet-22K (BiT, ViT) has two synsets more than the others'.
SUBSETS = {1000: "imagenet-1k", 11821: "imagenet-12k", 21841: "imagenet-22k", 21843: "imagenet-21k-goog"}

# What `data/evaluation_sets.py` opens as `name:folder`, and the layout it wants, as published.
EVALUATION_SETS = {
    "imagenet": "one folder a synset (n01440764 …)",
    "imagenet-real": "the validation images under their published names (ILSVRC2012_val_00000001.JPEG …), one folder a synset",
    "imagenet-v2": "folders 0 to 999",
    "imagenet-a": "folders named by its 200 synsets (n01498041 …)",
    "imagenet-r": "folders named by its 200 synsets (n01443537 …)",
    "imagenet-sketch": "one folder a synset (n01440764 …)",
    "imagenet-c": "corruption/severity/synset, as in gaussian_noise/1/n01440764, or the validation images, one folder a synset",
    "imagenet-c-bar": "corruption/severity/synset, as in blue_noise_sample/1/n01440764",
}


@functools.cache
def _info(num_classes: int) -> Any:
    from timm.data import ImageNetInfo

    return ImageNetInfo(SUBSETS[num_classes])


def synsets(num_classes: int) -> list[str]:
    """WordNet identifiers such as n01440764, by label."""
    return list(_info(num_classes).label_names())


def descriptions(num_classes: int) -> list[str]:
    """Names in English, by label."""
    return [_info(num_classes).index_to_description(i) for i in range(num_classes)]


def readable(classes: Sequence[str]) -> list[str]:
    """Class names for a person to read: synsets become the first of their English names, other names stay."""
    return [_english(name) for name in classes]


def _english(name: str) -> str:
    try:
        return str(_info(1000).label_name_to_description(name)).split(",")[0]  # timm's table has the names of all synsets
    except KeyError:
        return name


def subset_synsets(letter: str) -> list[str]:
    """The 200 synsets of ImageNet-A ("a") or ImageNet-R ("r"), sorted."""
    return (importlib.resources.files("timm.data") / "_info" / f"imagenet_{letter}_synsets.txt").read_text("utf-8").split()


def real_labels() -> list[list[int]]:
    """The ReaL labels of the validation images by their numbers less one: none, one or several of the 1,000 classes.

    Source: Beyer et al., *Are we done with ImageNet?* (2020).
    """
    from timm.data import RealLabelsImagenet

    return list(RealLabelsImagenet(range(50_000)).real_labels.values())
