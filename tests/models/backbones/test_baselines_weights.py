"""The baselines' weights: whose files load, and how published ones were tested."""

import re

import pytest
import timm
import torch
from baseline_networks import numbers, telling
from helpers import relative_error, sample_image

import convnext
from convnext.errors import ConvnextError
from convnext.models import load
from convnext.models.registry import BACKBONES
from convnext.models.weights.files import write_weights

BASELINES = [name for name, entry in BACKBONES.items() if entry.format == "timm"]


def save_as(state, path):
    write_weights(path, state)
    return path


@pytest.mark.parametrize(
    ("name", "network", "size"), [("regnety_4g", "regnety_040", 64), ("swin_tiny", "swin_tiny_patch4_window7_224", 224)]
)
@torch.no_grad()
def test_a_raw_file_loads_by_name(name, network, size, tmp_path):
    source = telling(timm.create_model(network, num_classes=11)).eval()
    # Old files lack BatchNorm's counts.
    state = {key: tensor for key, tensor in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    path = save_as(state, tmp_path / "model.safetensors")
    loaded, x = load.load(name, weights=str(path)), numbers(size, 1)
    assert not loaded.model.training
    assert torch.equal(loaded.model(x), source(x))
    assert loaded.preprocessing == BACKBONES[name].published(next(iter(BACKBONES[name].weights)))[0]
    tuned = convnext.create_model(name, num_classes=3, weights=path)
    assert tuned.get_classifier().weight.shape[0] == 3
    with pytest.raises(ConvnextError, match="give its name too"):
        load.load(path)
    del state[next(key for key in state if key.endswith("weight"))]
    with pytest.raises(ConvnextError, match=r"taken for the timm format\) do not fit .* missing: "):
        load.load(name, weights=str(save_as(state, path)))


@torch.no_grad()
def test_position_embeddings_are_resampled_when_weights_are_loaded(tmp_path):
    source = telling(timm.create_model("deit_small_patch16_224", num_classes=3)).eval()
    path = save_as(source.state_dict(), tmp_path / "model.safetensors")
    ours = convnext.create_model("deit_small", num_classes=3, image_size=96, weights=path).eval()
    theirs = timm.create_model(
        "deit_small_patch16_224", num_classes=3, img_size=96, pretrained=True, pretrained_cfg_overlay={"file": str(path), "num_classes": 3}
    ).eval()
    x = numbers(96, 1)
    assert ours.pos_embed.shape == (1, 1 + 6 * 6, 384)
    assert torch.equal(ours(x), theirs(x))


@torch.no_grad()
def test_swins_authors_files_load_too(tmp_path):
    """Their merging ends a stage where timm's begins the next, their head has another name, and masks are stored."""
    source = telling(convnext.create_model("swin_tiny", num_classes=5)).eval()
    state = {
        re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key).replace("head.fc", "head"): tensor
        for key, tensor in source.state_dict().items()
    } | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49), "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}
    torch.save({"model": state}, tmp_path / "swin.pth")
    loaded, x = load.load("swin_tiny", weights=str(tmp_path / "swin.pth")), numbers(224, 1)
    assert torch.equal(loaded.model(x), source(x))


@pytest.mark.parametrize("other", ["swin_small", "deit_small", "convnext_atto"])
def test_another_networks_weights_are_refused(other):
    with torch.device("meta"):
        model, state = convnext.create_model("swin_tiny"), convnext.create_model(other).state_dict()
    with pytest.raises(ConvnextError, match=r"do not fit swin_tiny: .*unexpected: "):
        load.load_weights(model, {key: torch.zeros(()).expand(tensor.shape) for key, tensor in state.items()})


@pytest.mark.parametrize("name", BASELINES)
def test_published_preprocessing_is_timms(name):
    """Of every tag, against the pipeline that timm itself builds."""
    entry = BACKBONES[name]
    network = entry.timm_name
    for tag, address in entry.weights.items():
        assert address == f"hf://timm/{network}.{tag}"
        how, classes = entry.published(tag)
        noted = timm.get_pretrained_cfg(f"{network}.{tag}")
        assert noted.hf_hub_id == f"timm/{network}.{tag}"
        assert classes == noted.num_classes
        at_test = how.image_size != noted.input_size[-1]
        config = timm.data.resolve_data_config(pretrained_cfg=noted.to_dict(), use_test_size=at_test)
        theirs = timm.data.create_transform(**config, is_training=False)
        image = sample_image(size=(200, 150))
        assert relative_error(how.transform()(image), theirs(image)) < 1e-6
        assert entry.published(f"somewhere/{network}.{tag}.safetensors") == (how, classes)


def test_the_papers_size_is_taken_where_weights_were_tested_at_it():
    sizes = {name: BACKBONES[name].published(next(iter(BACKBONES[name].weights), ""))[0].image_size for name in BASELINES}
    assert {name: size for name, size in sizes.items() if size != BACKBONES[name].image_size} == {"bit_r101x3": 448}
    tested = BACKBONES["resnet50"].published("tv2_in1k")[0]
    assert (tested.image_size, tested.crop_ratio, tested.interpolation) == (224, 0.965, "bilinear")
