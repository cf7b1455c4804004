"""The segmenters' formats against the listings of published files; that they mean the same is in tests/segmentation."""

import pytest
import torch
from helpers import shared

import convnext
from convnext.errors import ConvnextError
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.segmentation.upernet import UperNet
from convnext.models.weights.heads.segmenters import from_native, recognise, to_native

LISTED = {"mmsegmentation": "mmseg", "transformers": "transformers"}


def tiny():
    with torch.device("meta"):
        return UperNet(convnext.create_model("convnext_tiny"), 150, output_norm=True)


def small(**how):
    return UperNet(ConvNeXt((1, 2, 11, 1), (4, 6, 8, 10)), 3, **{"output_norm": True, "channels": 4, "auxiliary_channels": 2} | how)


def listing(name):
    lines = shared(f"reference/keys/upernet_convnext_tiny.{LISTED[name]}.txt").read_text().splitlines()
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in map(str.split, lines)}


@pytest.mark.parametrize("name", LISTED)
def test_names_and_shapes_are_those_listed(name):
    foreign = from_native(tiny().state_dict(), name)
    assert {key: tuple(tensor.shape) for key, tensor in foreign.items()} == listing(name)


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_key_has_its_place(name):
    state = {key: torch.empty(shape, device="meta") for key, shape in listing(name).items()}
    assert recognise(state) == name
    native, own = to_native(state, name), tiny().state_dict()
    assert {key: tensor.shape for key, tensor in native.items()} == {key: tensor.shape for key, tensor in own.items()}


@pytest.mark.parametrize("name", ["official", "mmsegmentation", "transformers"])
def test_round_trips_bit_for_bit(name):
    state = small().state_dict()
    foreign = from_native(state, name)
    assert recognise(foreign) == name
    assert len(foreign) == len(state)
    back = to_native(foreign, name)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_official_names():
    """As `formats.md` describes them: the published backbone's, its output norms among them, and mmsegmentation's heads."""
    official, mmseg = from_native(tiny().state_dict(), "official"), listing("mmsegmentation")
    words = {"depthwise_conv": "dwconv", "pointwise_conv1": "pwconv1", "pointwise_conv2": "pwconv2"}
    assert official.keys() == {".".join(words.get(word, word) for word in key.split(".")) for key in mmseg}
    assert {"backbone.norm3.bias", "backbone.stages.2.8.gamma", "auxiliary_head.convs.0.bn.running_var"} <= official.keys()


@pytest.mark.parametrize("how", [{}, {"output_norm": False}])
def test_own_names_are_recognised_and_stay(how):
    state = small(**how).state_dict()
    assert recognise(state) == "official"
    assert to_native(state, "official").keys() == state.keys()


def test_an_unknown_key_stays_for_the_loading_to_refuse():
    state = from_native(small().state_dict(), "transformers") | {"backbone.encoder.stages.0.layers.0.gate.weight": torch.zeros(4)}
    with pytest.raises(RuntimeError, match=r"Unexpected.*layers\.0\.gate\.weight"):
        small().load_state_dict(to_native(state, recognise(state)))


def test_foreign_states_are_reported():
    with pytest.raises(ConvnextError, match=r"conv1\.weight.*mmsegmentation, transformers, official"):
        recognise({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ConvnextError, match=r"transformers format has no name for 'backbone\.layers"):
        from_native({"backbone.layers.0.blocks.0.attn.qkv.weight": torch.zeros(1)}, "transformers")
