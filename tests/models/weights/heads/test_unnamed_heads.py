"""Detectors and segmenters that are given without a network's name: their content says which they are."""

import pytest
import torch
import transformers
from helpers import randomise, relative_error

import convnext
from convnext.errors import ConvnextError
from convnext.models import load
from convnext.models.weights.convert import convert
from convnext.models.weights.heads import detectors, segmenters

SIZES = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
OURS = {"depths": (1, 1, 2, 1), "widths": (8, 16, 24, 32)}
KINDS = {"convnext_tiny": transformers.ConvNextConfig, "convnextv2_tiny": transformers.ConvNextV2Config}


def upernet(kind=transformers.ConvNextConfig, **backbone):
    under = kind(**SIZES | backbone, out_features=["stage1", "stage2", "stage3", "stage4"])
    names = {0: "wall", 1: "tree", 2: "sky"}
    config = transformers.UperNetConfig(backbone_config=under, hidden_size=16, auxiliary_channels=8, id2label=names)
    return randomise(transformers.UperNetForSemanticSegmentation(config)).eval()


@pytest.mark.parametrize("backbone", KINDS)
@pytest.mark.parametrize("how", ["folder", "file", "wrapped"])
@torch.no_grad()
def test_transformers_upernet(tmp_path, backbone, how):
    theirs, x = upernet(KINDS[backbone]), torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    if how == "folder":
        theirs.save_pretrained(tmp_path)
    else:
        state = {("model." if how == "wrapped" else "") + key: tensor for key, tensor in theirs.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "model.pth")
    loaded = load.load(tmp_path if how == "folder" else tmp_path / "model.pth")
    assert (loaded.model.spec["name"], loaded.task, loaded.model.num_classes) == (f"upernet_{backbone}", "segment", 3)
    assert loaded.classes == (["wall", "tree", "sky"] if how == "folder" else None)
    assert relative_error(loaded.model(x), theirs(x).logits) < 1e-5
    maps = theirs.backbone(x).feature_maps
    assert max(map(relative_error, loaded.model.features(x), maps)) < 1e-5
    assert relative_error(loaded.model.logits_and_auxiliary(x)[1], theirs.auxiliary_head(maps)) < 1e-5


@torch.no_grad()
def test_another_activation_is_the_configurations(tmp_path):
    theirs, x = upernet(hidden_act="gelu_new"), torch.randn(1, 3, 64, 64)
    theirs.save_pretrained(tmp_path)
    ours = load.load(tmp_path).model
    assert ours.spec["activation"] == "gelu_tanh"
    assert relative_error(ours(x), theirs(x).logits) < 1e-5


def test_over_dinov3_it_is_refused_because_it_is_another_function(tmp_path):
    upernet(transformers.DINOv3ConvNextConfig).save_pretrained(tmp_path)
    with pytest.raises(ConvnextError, match="UperNet of transformers over a DINOv3 backbone, whose maps have no norms"):
        load.load(tmp_path)
    with pytest.raises(ConvnextError, match="UperNet of transformers over a DINOv3 backbone, whose maps have no norms"):
        convnext.create_model("upernet_convnext_tiny", weights=tmp_path / "model.safetensors")


HEADS = {
    "upernet_convnext_tiny": {"channels": 16, "auxiliary_channels": 8},
    "upernet_convnextv2_tiny": {"channels": 16, "auxiliary_channels": 8},
    "mask_rcnn_convnext_tiny": {"channels": 16, "fc_channels": 24},
    "cascade_mask_rcnn_convnextv2_tiny": {"channels": 16, "fc_channels": 24, "masks": False},
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("library", ["official", "mm"])
def test_bare_weights_of_detectors_and_segmenters(tmp_path, name, library):
    model = convnext.create_model(name, num_classes=3, layer_scale=0.0 if "v2" in name else 1.0, **OURS, **HEADS[name])
    names, mm = (segmenters, "mmsegmentation") if name.startswith("upernet") else (detectors, "mmdetection")
    torch.save(names.from_native(model.state_dict(), "official" if library == "official" else mm), tmp_path / "it.pth")
    loaded = load.load(tmp_path / "it.pth")
    assert loaded.model.spec["name"] == name
    assert loaded.model.num_classes == 3
    found = loaded.model.state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in model.state_dict().items())


def test_convert_says_that_it_writes_no_heads(tmp_path):
    upernet().save_pretrained(tmp_path / "there")
    with pytest.raises(ConvnextError, match="holds a upernet_convnext_tiny: convert writes classifiers and backbones"):
        convert(str(tmp_path / "there"), tmp_path / "out.safetensors", "timm")


def test_of_another_backbone_the_name_is_asked_for(tmp_path):
    model = convnext.create_model("upernet_resnet50", num_classes=2, channels=8, auxiliary_channels=4)
    torch.save(model.state_dict(), tmp_path / "it.pth")
    with pytest.raises(ConvnextError, match="give its name too"):
        load.load(tmp_path / "it.pth")
