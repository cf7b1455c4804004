"""The classes of ImageNet-1K and ImageNet-22K, in the order of the published heads (from timm's tables).

BiT's heads have 21,843 classes, two more than the others of ImageNet-22K.
"""

import functools
from typing import Any

SUBSETS = {1000: "imagenet-1k", 21841: "imagenet-22k", 21843: "imagenet-21k-goog"}  # number of classes → timm's name


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
