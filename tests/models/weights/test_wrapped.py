"""Weights as other programs write them: prefixes, containers, backbones without norm and head, folders, shards, other channels."""

import json
import logging

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models._manipulate import adapt_input_conv

import convnext
from convnext.errors import ConvnextError
from convnext.models.load import load
from convnext.models.weights.wrapped import state_of, unwrapped, without_shared_prefix

SIZES = {"depths": (1, 1, 2, 1), "widths": (8, 16, 24, 32)}
THEIRS = {"depths": SIZES["depths"], "dims": SIZES["widths"], "ls_init_value": 1.0}


def image(channels=3):
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def theirs():
    """A ConvNeXt of timm with random weights."""
    torch.manual_seed(0)
    return timm.create_model("convnext_tiny", num_classes=5, **THEIRS).eval()


def hugging_face(kind="ConvNextForImageClassification", **more):
    torch.manual_seed(0)
    sizes = {"depths": list(SIZES["depths"]), "hidden_sizes": list(SIZES["widths"])}
    config = transformers.ConvNextConfig(**sizes, num_labels=5, layer_scale_init_value=1.0, **more)
    return getattr(transformers, kind)(config).eval()


@torch.no_grad()
def same_logits(path, model):
    found = model(image())
    assert torch.allclose(load(path).model(image()), getattr(found, "logits", found), atol=1e-5)


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "encoder.",
    "backbone.",
    "model.backbone.",
    "module.net._orig_mod.",
    "my.own.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_found_by_what_matches(theirs, tmp_path, prefix, caplog):
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    torch.save(
        {"state_dict": state | {"criterion.weight": torch.ones(5)}, "hyper_parameters": {"lr": 1e-3}, "epoch": 3}, tmp_path / "w.ckpt"
    )
    same_logits(tmp_path / "w.ckpt", theirs)
    assert "also holds 1 tensor that the network does not have, ignored: criterion.weight" in caplog.text
    assert "only its weights are read (state_dict); its hyper_parameters are ignored" in caplog.text
    ours = convnext.create_model("convnext_tiny", num_classes=5, layer_scale=1.0, weights=state, **SIZES).eval()
    assert torch.allclose(ours(image()), theirs(image()), atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "encoder.model.", "convnext_model."])
def test_prefixes_of_transformers_networks(tmp_path, prefix):
    for kind in ("ConvNextForImageClassification", "ConvNextModel"):
        model = hugging_face(kind, layer_norm_eps=1e-6)
        torch.save({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "w.bin")
        if kind == "ConvNextModel":
            with torch.no_grad():
                assert torch.allclose(load(tmp_path / "w.bin").model(image()), model(image()).pooler_output, atol=1e-5)
        else:
            same_logits(tmp_path / "w.bin", model)


def test_a_wrapped_baseline_and_a_wrapped_segmenter():
    for name, more in (("resnet50", {}), ("upernet_convnext_tiny", {"num_classes": 3, "channels": 8} | SIZES)):
        model = convnext.create_model(name, **more)
        wrapped = {f"model.{key}": value for key, value in model.state_dict().items()}
        again = convnext.create_model(name, **more, weights=wrapped).state_dict()
        assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


CONTAINERS = ["model", "state_dict", "model_state_dict", "model_ema", "teacher", "student", "state_dict_ema", "net"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(tmp_path, name):
    state = {"a": torch.ones(1)}
    for content in ({name: state, "epoch": 1}, {name: {"state_dict": state, "step": 2}}, {"optimizer": {"state": {}}, name: state}):
        assert state_of(content, tmp_path, None).keys() == {"a"}
    with pytest.raises(ConvnextError, match=f"is not a plain table of tensors: name the entry that is.*it has nothing, {name}"):
        state_of({"nothing": 1, name: []}, tmp_path, None)


def test_the_shortest_prefix_is_taken_and_a_head_is_not_lost_with_it():
    state = {"a.x.w": 1, "b.c.x.w": 2, "x.w": 3}
    assert unwrapped(state, ["x.w"]) == (state, [])
    assert unwrapped({"a.x.w": 1, "b.c.x.w": 2}, ["x.w"]) == ({"x.w": 1}, ["b.c.x.w"])
    assert unwrapped({"ax.w": 1}, ["x.w"]) == ({"ax.w": 1}, [])
    assert without_shared_prefix({"a.b.c.weight": 1, "a.b.d.weight": 2}) == {"c.weight": 1, "d.weight": 2}
    assert without_shared_prefix({"head.weight": 1, "head.bias": 2}) == {"head.weight": 1, "head.bias": 2}


def test_a_segmenter_without_its_name_is_no_backbone(theirs, tmp_path):
    state = {f"backbone.{key}": value for key, value in theirs.state_dict().items()} | {"decode_head.conv.weight": torch.ones(1)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConvnextError, match="no known ConvNeXt weight format has these keys"):
        load(tmp_path / "w.pth")
    convnext.create_model("convnext_tiny", num_classes=5, weights=tmp_path / "w.pth", **SIZES)


# Backbones without last norm or head


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    return timm.create_model("convnext_tiny", features_only=True, **THEIRS).eval()


@torch.no_grad()
def test_a_features_only_network_of_timm(features, tmp_path, caplog):
    torch.save(features.state_dict(), tmp_path / "w.pth")
    found = load(tmp_path / "w.pth")
    assert found.model.num_classes == 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found.model.features(image()), features(image()), strict=True))
    assert "has no last norm: the network's is new" in caplog.text
    ours = convnext.create_model("convnext_tiny", num_classes=7, weights=tmp_path / "w.pth", layer_scale=1.0, **SIZES)
    assert "w.pth has no head: the model's head for 7 classes is new" in caplog.text
    assert torch.equal(ours.norm.weight, torch.ones(32))
    caplog.clear()
    detector = convnext.create_model("mask_rcnn_convnext_tiny", num_classes=2, weights=tmp_path / "w.pth", layer_scale=1.0, **SIZES)
    assert torch.equal(detector.backbone.stages[3][0].dwconv.weight, features.stages_3.blocks[0].conv_dw.weight)
    assert "norm" not in caplog.text


@torch.no_grad()
def test_a_backbone_of_mmsegmentation_and_one_of_transformers(theirs, tmp_path, caplog):
    ours = convnext.create_model("convnext_tiny", num_classes=5, layer_scale=1.0, weights=theirs.state_dict(), **SIZES).eval()
    norms = {f"norm{i}.{leaf}": torch.ones(8) for i in range(4) for leaf in ("weight", "bias")}
    body = {key: value for key, value in ours.state_dict().items() if not key.startswith(("norm", "head"))}
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in (body | norms).items()}}, tmp_path / "w.pth")
    found = load(tmp_path / "w.pth").model
    assert all(torch.equal(a, b) for a, b in zip(found.features(image()), ours.features(image()), strict=True))
    assert "also holds 8 tensors that the network does not have, ignored: norm0.bias, norm0.weight, norm1.bias, …" in caplog.text
    backbone = hugging_face("ConvNextBackbone", out_features=["stage1", "stage4"])
    backbone.save_pretrained(tmp_path / "backbone")
    found = load(tmp_path / "backbone").model
    maps = found.features(image())
    for number, wanted in zip((0, 3), backbone(image()).feature_maps, strict=True):
        normed = getattr(backbone.hidden_states_norms, f"stage{number + 1}")(maps[number])
        assert torch.allclose(normed, wanted, atol=1e-5)


def test_a_head_without_its_norm_is_not_completed(theirs):
    state = {key: value for key, value in theirs.state_dict().items() if "head.norm" not in key}
    with pytest.raises(ConvnextError, match=r"missing: norm.bias, norm.weight"):
        convnext.create_model("convnext_tiny", num_classes=5, weights=state, layer_scale=1.0, **SIZES)


# Folders of transformers


@pytest.mark.parametrize("shards", ["10GB", "30KB"])
def test_a_local_folder_of_transformers(tmp_path, shards):
    model = hugging_face(id2label={i: f"kind {i}" for i in range(5)})
    model.save_pretrained(tmp_path / "folder", max_shard_size=shards)
    assert (tmp_path / "folder" / "model.safetensors.index.json").exists() == (shards == "30KB")
    same_logits(tmp_path / "folder", model)
    found = load(tmp_path / "folder")
    assert found.classes == [f"kind {i}" for i in range(5)]
    assert found.run is None
    created = convnext.create_model("convnext_tiny", num_classes=5, layer_scale=1.0, weights=tmp_path / "folder", **SIZES).eval()
    assert torch.allclose(created(image()), model(image()).logits, atol=1e-5)


def test_a_folder_with_pytorch_model_bin(tmp_path):
    model = hugging_face()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    same_logits(tmp_path, model)


def test_an_index_that_names_other_files_or_lacks_some_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for table, message in (
        ({"weight_map": {"a": "../one.safetensors"}}, "it names other files than shards beside it"),
        ({"weight_map": {"a": index.name}}, "it names other files than shards beside it"),
        ({"weight_map": {"a": 3}}, "can't be read"),
        ({"weight_map": ["a"]}, "can't be read"),
        ([], "can't be read"),
        ({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}, "the shards of .* lack b: download them again"),
        ({"weight_map": {"a": "two.safetensors"}}, "no weight file .*two.safetensors"),
    ):
        index.write_text(json.dumps(table))
        with pytest.raises(ConvnextError, match=message):
            load(tmp_path)


# Channels


@pytest.mark.parametrize(
    ("channels", "how"),
    [
        (1, "the sum of those for red, green and blue"),
        (2, "scaled by 3/2"),
        (4, "those for red, green and blue in turn, scaled by 3/4"),
        (13, "3/13"),
    ],
)
@torch.no_grad()
def test_other_channels_are_adapted_as_timm_does(theirs, channels, how, caplog):
    state = theirs.state_dict()
    network = timm.create_model("convnext_tiny", num_classes=5, in_chans=channels, **THEIRS).eval()
    network.load_state_dict(state | {"stem.0.weight": adapt_input_conv(channels, state["stem.0.weight"])})
    with caplog.at_level(logging.WARNING):
        ours = convnext.create_model("convnext_tiny", num_classes=5, in_channels=channels, layer_scale=1.0, weights=state, **SIZES).eval()
    assert torch.allclose(ours(image(channels)), network(image(channels)), atol=1e-5)
    assert f"takes 3 channels; for {channels} its weights are" in caplog.text
    assert how in caplog.text


def test_weights_for_other_channels_than_three_are_not_adapted():
    two = convnext.create_model("convnext_tiny", num_classes=5, in_channels=2, **SIZES)
    with pytest.raises(ConvnextError, match=r"misshapen: downsample_layers.0.0.weight"):
        convnext.create_model("convnext_tiny", num_classes=5, weights=two.state_dict(), **SIZES)
