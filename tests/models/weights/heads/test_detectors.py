import logging
import re

import pytest
import torch
from helpers import shared

import convnext
from convnext.errors import ConvnextError
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.detection import cascade_mask_rcnn, mask_rcnn
from convnext.models.load import load_weights
from convnext.models.weights.heads import detectors

BUILDERS = {"mask_rcnn": mask_rcnn, "cascade_mask_rcnn": cascade_mask_rcnn}


def small(kind="mask_rcnn", num_classes=3, seed=0):
    torch.manual_seed(seed)
    sizes = {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32), "channels": 16, "fc_channels": 32}
    return convnext.create_model(f"{kind}_convnext_tiny", num_classes=num_classes, **sizes)


@pytest.mark.parametrize("kind", BUILDERS)
def test_names_and_shapes_are_those_listed(kind):
    lines = shared(f"reference/keys/{kind}_convnext_tiny.mmdet.txt").read_text().splitlines()
    listed = {name: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for name, shape in map(str.split, lines)}
    with torch.device("meta"):
        state = BUILDERS[kind](convnext.create_model("convnext_tiny"), 80, True).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in detectors.from_native(state, "mmdetection").items()} == listed


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("name", detectors.FORMATS)
def test_through_each_format_and_back(kind, name):
    state = small(kind).state_dict()
    foreign = detectors.from_native(state, name)
    assert detectors.is_whole(foreign)
    assert detectors.recognise(foreign) == name
    assert (foreign.keys() == state.keys()) == (name == "official")
    other = small(kind, seed=1)
    load_weights(other, foreign)
    assert all(torch.equal(tensor, state[key]) for key, tensor in other.state_dict().items())


def test_own_names_are_the_official_ones():
    """As `formats.md` describes them."""
    layout = (
        r"backbone\.(downsample_layers\.[0-3]\.[01]\.(weight|bias)|stages\.[0-3]\.\d+\.((dwconv|norm|pwconv1|pwconv2)\.(weight|bias)|gamma)"
        r"|norm[0-3]\.(weight|bias))|(neck|rpn_head|roi_head)\..*"
    )
    assert all(re.fullmatch(layout, key) for key in small().state_dict())


def test_linear_layers_may_come_as_convolutions():
    state = detectors.from_native(small().state_dict(), "mmdetection")
    state = {key: tensor[:, :, None, None] if "pointwise" in key and "weight" in key else tensor for key, tensor in state.items()}
    load_weights(small(seed=1), state)


def test_every_key_is_accounted_for():
    state = detectors.from_native(small().state_dict(), "mmdetection")
    state["roi_head.bbox_head.extra.weight"] = state.pop("neck.fpn_convs.2.conv.bias")
    state["rpn_head.rpn_cls.weight"] = torch.zeros(5, 16, 1, 1)
    message = (
        r"taken for the mmdetection format.*missing: neck\.fpn_convs\.2\.conv\.bias; unexpected: roi_head\.bbox_head\.extra\.weight; "
        r"misshapen: rpn_head\.rpn_cls\.weight \(5, 16, 1, 1\) instead of \(3, 16, 1, 1\)$"
    )
    with pytest.raises(ConvnextError, match=message):
        load_weights(small(seed=1), state)
    with pytest.raises(ConvnextError, match=r"missing: .* and \d+ more"):
        load_weights(small("cascade_mask_rcnn"), small().state_dict())


def test_what_is_no_detector_is_message():
    backbone = ConvNeXt((1, 1, 1, 1), (8, 16, 24, 32)).state_dict()
    assert not detectors.is_whole(backbone)
    with pytest.raises(ConvnextError, match="not a detector's weights"):
        detectors.recognise(backbone)


@pytest.mark.parametrize("kind", BUILDERS)
def test_weights_for_other_classes_leave_their_layers_fresh(kind, caplog):
    source, model = small(kind).state_dict(), small(kind, num_classes=7, seed=1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING, "convnext"):
        load_weights(model, source)
    assert "has 3 classes, the model 7" in caplog.text
    fresh = {key for key, tensor in model.state_dict().items() if torch.equal(tensor, before[key]) and tensor.ndim > 1}
    stages = 3 if kind == "cascade_mask_rcnn" else 1
    assert len(fresh) == 3 * stages
    assert all(re.search(r"fc_cls|fc_reg|conv_logits", key) for key in fresh)

    same = small(kind, seed=1)
    load_weights(same, source, new_head=True)
    assert not torch.equal(same.state_dict()["rpn_head.rpn_conv.weight"], before["rpn_head.rpn_conv.weight"])
    own = small(kind, seed=1).state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in same.state_dict().items() if "fc_cls" in key)
