import pytest
import torch

import convnext
from convnext.models.segmentation.decay import stage_group
from convnext.models.segmentation.upernet import UperNet

# Group of a name; the scale of each group is published for 6 groups (T) and for 12 (S to XL), each from recipes.md's rule.
NAMES = {
    "backbone.downsample_layers.0.0.weight": 0,
    "backbone.downsample_layers.3.1.bias": 0,
    "backbone.stages.0.2.gamma": 1,
    "backbone.stages.1.0.dwconv.weight": 2,
    "backbone.stages.2.26.norm.bias": 3,
    "backbone.stages.3.0.pwconv2.weight": 4,
    "backbone.patch_embed.proj.weight": 0,
    "backbone.layers.1.downsample.reduction.weight": 0,
    "backbone.layers.2.blocks.17.attn.qkv.weight": 3,
    "backbone.layer2.0.downsample.0.weight": 2,
    "backbone.norm3.weight": None,
    "decode_head.psp_modules.0.1.conv.weight": None,
    "auxiliary_head.conv_seg.bias": None,
}
SCALES = {
    6: {0: 0.4782969, 1: 0.531441, 2: 0.59049, 3: 0.6561, 4: 0.729, None: 1.0},
    12: {0: 0.2541865828, 1: 0.2824295365, 2: 0.3138105961, 3: 0.3486784401, 4: 0.387420489, None: 1.0},
}


@pytest.mark.parametrize("groups", [6, 12])
@pytest.mark.parametrize("name", NAMES)
def test_scales_are_the_published_ones(name, groups):
    group = NAMES[name]
    assert stage_group(name, groups) == (groups + 1 if group is None else group)
    assert 0.9 ** (groups + 1 - stage_group(name, groups)) == pytest.approx(SCALES[groups][group], rel=1e-9)  # as build_optimizer has it


@pytest.mark.parametrize(("size", "groups"), [("tiny", 6), ("small", 12), ("base", 12), ("large", 12), ("xlarge", 12)])
def test_published_networks_have_6_or_12_groups_of_which_the_rest_is_one_more(size, groups):
    with torch.device("meta"):
        model = UperNet(convnext.create_model(f"convnext_{size}"), 150, output_norm=True)
    found = {model.layer_group(name) for name, _ in model.named_parameters()}
    assert model.decay_groups == groups
    assert found == {0, 1, 2, 3, 4, groups + 1}
