"""Stage-wise learning rate decay, as in the published ADE20K runs.

It counts groups as the layer-wise decay of classification and detection does (6 in ConvNeXt-T, 12 in S to XL), but puts whole stages
into the first of them. The groups between the fourth stage's and the last are empty. The fourth stage learns at 0.9^3 of the full rate in
T, and at 0.9^9 in the others.
"""

import re

# A stage counts from 0 in ConvNeXt ("stages") and Swin ("layers"), from 1 in ResNet ("layer1"). A network from outside is in "network".
_STAGE = re.compile(r"backbone\.(?:network\.)?(?:(?:stages|layers)\.(\d+)|layer(\d+))\.(?!downsample\.)")


def stage_group(name: str, groups: int) -> int:
    """Return the group of a segmenter's parameter.

    It is 0 for the backbone's stem and downsampling layers, 1 to 4 for its stages, groups + 1 for heads and output norms. Parameters of a
    backbone without stages of a known name are in group 0: those of an EfficientNet, for which no such decay was published.
    """
    if not name.startswith("backbone.") or is_output_norm(name):
        return groups + 1
    stage = _STAGE.match(name)
    if stage is None:
        return 0
    return int(stage[1]) + 1 if stage[1] else int(stage[2])


def is_output_norm(name: str) -> bool:
    """Return whether the parameter is of an output norm, which is named as a part of the backbone, as in the published weights."""
    return re.match(r"backbone\.norm[0-3]\.", name) is not None
