"""The image towers of open_clip, which runs here, with random weights."""

import json

import open_clip
import pytest
import timm
import torch
from helpers import randomise, relative_error, sample_image
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import load_file, save_file

import convnext
from convnext.errors import ConvnextError
from convnext.models import load
from convnext.models.weights.convert import convert

# timm's pool and projection of a tower: one layer, two (as in convnext_large_d), and timm's own head.
HEADS = {"linear": ("", "linear"), "mlp": ("", "mlp"), "timm": ("avg", "")}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


def clip(head="linear", network="convnext_atto", **vision):
    """A whole CLIP, and its configuration."""
    pool, projection = HEADS[head]
    tower = {"timm_model_name": network, "timm_pool": pool, "timm_proj": projection, "image_size": 96} | vision
    config = {"embed_dim": 12, "vision_cfg": tower, "text_cfg": TEXT}
    return randomise(open_clip.CLIP(**config)).eval(), config


def saved(model, config, folder, name="open_clip_model.safetensors"):
    """As open_clip's `push_to_hf_hub` lays it."""
    folder.mkdir()
    model.visual.image_mean, model.visual.image_std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / name)
    return folder


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_embeddings_and_maps_are_open_clips(tmp_path, head, prefix, caplog):
    theirs, _ = clip(head)
    torch.save({prefix + key: value for key, value in theirs.state_dict().items()}, tmp_path / "tower.bin")
    ours, x = load.load(tmp_path / "tower.bin").model, torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    assert relative_error(ours(x), theirs.encode_image(x)) < 1e-5
    maps = theirs.visual.forward_intermediates(x, intermediates_only=True)["image_intermediates"]
    assert max(map(relative_error, ours.features(x), maps)) < 1e-5
    outside = sum(not key.startswith("visual.") for key in theirs.state_dict())
    assert f"also holds {outside} tensors that the network does not have, ignored: " in caplog.text
    assert "logit_scale" in caplog.text


@pytest.mark.parametrize("network", ["convnext_tiny", "convnext_zepto_rms", "test_convnext"])
@torch.no_grad()
def test_a_folder_says_the_function_and_how_images_are_prepared(tmp_path, network):
    """No tensor shows a kind of norm, an activation or an epsilon: open_clip_config.json names timm's network."""
    theirs, config = clip(network=network)
    predictor = convnext.load(saved(theirs, config, tmp_path / "clip"), device="cpu")
    image = sample_image(size=(150, 120))
    x = open_clip.image_transform(96, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)(image)[None]
    assert torch.allclose(predictor.preprocessing.transform()(image), x[0], atol=1e-6)
    assert relative_error(predictor.model(x), theirs.encode_image(x)) < 1e-5


def test_images_that_are_squashed_and_those_that_are_padded(tmp_path):
    folder = saved(*clip(), tmp_path / "clip")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    for mode in ("squash", "longest"):
        path.write_text(json.dumps(config | {"preprocess_cfg": {"resize_mode": mode, "mean": [0.5] * 3, "std": [0.5] * 3}}))
        if mode == "longest":
            with pytest.raises(ConvnextError, match="open_clip_config.json asks for resize_mode 'longest', which is not supported"):
                load.load(folder)
        else:
            how = load.load(folder).preprocessing
            assert (how.image_size, how.warp, how.mean) == (96, True, (0.5,) * 3)


@pytest.mark.parametrize("head", HEADS)
def test_timm_reads_what_is_converted_bit_for_bit(tmp_path, head):
    """The tower with its projection as the head: open_clip itself has no model without text, so it is no target of `convert`."""
    network = "convnext_tiny" if head == "mlp" else "convnext_atto"  # timm's atto with such a head has no name, by which it is written
    theirs, config = clip(head, network)
    convert(str(saved(theirs, config, tmp_path / "clip")), tmp_path / "timm.safetensors", "timm")
    state = load_file(tmp_path / "timm.safetensors")
    again = timm.create_model(network, num_classes=12, **({"head_hidden_size": 24} if head == "mlp" else {}))
    again.load_state_dict(state)
    trunk = {key.removeprefix("trunk."): tensor for key, tensor in theirs.visual.state_dict().items() if key.startswith("trunk.")}
    assert all(torch.equal(tensor, state[key]) for key, tensor in trunk.items())
    if head != "timm":
        last = {"linear": "proj", "mlp": "mlp.fc2"}[head]
        assert torch.equal(theirs.visual.state_dict()[f"head.{last}.weight"], state["head.fc.weight"])
        assert not state["head.fc.bias"].any()


def test_the_configurations_of_the_package_name_networks_that_are_known():
    towers = [open_clip.get_model_config(name)["vision_cfg"]["timm_model_name"] for name in open_clip.list_models() if "convnext" in name]
    assert len(towers) >= 11
    assert not set(towers) - set(convnext.list_models())
