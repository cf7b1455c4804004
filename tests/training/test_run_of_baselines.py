"""The rivals by the same commands: trained, measured, used, converted."""

import re

import pytest
import timm
import torch
from helpers import image_folder
from safetensors.torch import load_file

import convnext
from convnext.errors import UsageError
from convnext.evaluate import evaluate_loaded
from convnext.models import load
from convnext.models.weights.convert import convert
from convnext.recipe import load_recipe
from convnext.training.state import new_state

SMALL = {
    "model.depths": None,
    "model.widths": None,
    "data.image_size": 40,
    "data.workers": 0,
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.batch_size": 6,
    "train.device_batch_size": 4,
    "train.ema": 0.5,
    "optim.layer_decay": 0.7,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "photos", each=2)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("efficientnet_b3", "tf_efficientnet_b3"),
        pytest.param("deit_small", "deit_small_patch16_224", marks=pytest.mark.slow),
        ("lenet5", None),
    ],
)
def test_the_whole_way(name, network, photos, tmp_path):
    more = {"model.name": name, "data.train": str(photos), "data.val": str(photos), "model.drop_path": 0.0 if name == "lenet5" else 0.1}
    result = convnext.train("digits", SMALL | more, output=tmp_path / "run")
    file = str(tmp_path / "run" / "best.safetensors")
    x = torch.randn(1, 3, 40, 40)
    for source in (tmp_path / "run", file):
        loaded = load.load(source)
        assert loaded.model.spec["name"] == name
        assert loaded.preprocessing.image_size == 40
        assert loaded.classes == ["ant", "bee", "wasp"]
    assert torch.equal(load.load(name, weights=file).model(x), loaded.model(x))
    with pytest.raises(UsageError, match=f"holds a {name}, not a resnet50"):
        load.load("resnet50", weights=file)
    measured = evaluate_loaded(load.load(tmp_path / "run"), None, 2, 0, 0.0, torch.device("cpu")).result
    assert measured.metrics["top1"] == pytest.approx(result.best)
    (best, _), *_ = convnext.load(tmp_path / "run")(next(photos.rglob("*.jpg"))).top(1)
    assert best in loaded.classes
    if network is None:
        with pytest.raises(UsageError, match="lenet5 can't be converted"):
            convert(file, tmp_path / "x.safetensors", "timm")
        return
    assert re.match(f"{name}: .* in timm's names", convert(file, tmp_path / "timm.safetensors", "timm"))
    theirs = timm.create_model(
        network, num_classes=3, **({"dynamic_img_size": True, "dynamic_img_pad": True} if name == "deit_small" else {})
    )
    theirs.load_state_dict(load_file(tmp_path / "timm.safetensors"))
    assert torch.equal(theirs.eval()(x), loaded.model(x))
    with pytest.raises(UsageError, match="in timm's format only"):
        convert(file, tmp_path / "x.pth", "torchvision")


def test_the_moving_average_leaves_indices_whole():
    """Rounded down step by step, they would name other relative positions."""
    recipe = load_recipe("digits", {"model.name": "swin_tiny", "model.depths": None, "model.widths": None, "train.ema": 0.9999})
    state = new_state(convnext.create_model("swin_tiny", num_classes=2), recipe, torch.device("cpu"))
    for _ in range(2):
        state.ema.update_parameters(state.model)
    ours, averaged = dict(state.model.named_buffers()), dict(state.ema.module.named_buffers())
    assert len(ours) == 12 + 5
    assert all(torch.equal(ours[name], averaged[name]) for name in ours)
