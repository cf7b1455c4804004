"""Stage-wise learning rate decay, as in the published ADE20K runs.

It counts groups as the layer-wise decay of classification and detection does (6 in ConvNeXt-T, 12 in S to XL), but puts whole stages
into the first of them. So no parameter is in the groups between the fourth stage's and the last, and the fourth stage learns at 0.9^3 of
the full rate in T, and at 0.9^9 in the others.
"""

import re

# A stage counts from 0 in ConvNeXt ("stages") and Swin ("layers"), from 1 in ResNet ("layer1").
_STAGE = re.compile(r"backbone\.(?:(?:stages|layers)\.(\d+)|layer(\d+))\.(?!downsample\.)")


def stage_group(name: str, groups: int) -> int:
    """The group of a segmenter's parameter.

    0 for the backbone's stem and downsampling layers, 1 to 4 for its stages, groups + 1 for all else: heads and output norms. What
    belongs to no stage that is known by its name counts as the stem; that is all of an EfficientNet, for which nobody
    published such a decay.
    """
    if not name.startswith("backbone.") or is_output_norm(name):
        return groups + 1
    stage = _STAGE.match(name)
    if stage is None:
        return 0
    return int(stage[1]) + 1 if stage[1] else int(stage[2])


def is_output_norm(name: str) -> bool:
    """Whether the parameter is of a norm on a map, which stands in the backbone, as in the published weights, but is none of its own."""
    return re.match(r"backbone\.norm[0-3]\.", name) is not None


def lr_scale(name: str, groups: int, decay: float = 0.9) -> float:
    """The factor on a segmenter's parameter's learning rate: decay^(groups + 1 - group), 1 for the heads."""
    return decay ** (groups + 1 - stage_group(name, groups))
