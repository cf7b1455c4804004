import csv
import json
import logging

import pytest
import torch
from helpers import random_model, shared

import convnext
from convnext.errors import ConvnextError, UsageError
from convnext.models import load
from convnext.models.weights.files import write_weights

ROWS = {"ConvNeXt-T": "tiny", "ConvNeXt-S": "small", "ConvNeXt-B": "base", "ConvNeXt-L": "large", "ConvNeXt-XL": "xlarge"}


def test_list_models():
    assert convnext.list_models("convnext_isotropic_*") == [f"convnext_isotropic_{s}" for s in ("small", "base", "large")]
    family = ["atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge"]
    assert convnext.list_models("convnext_*")[:9] == [f"convnext_{size}" for size in family]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convnext.create_model("convnext_tny"), "unknown model 'convnext_tny'; did you mean 'convnext_tiny'?"),
        (lambda: convnext.create_model("convnext_tiny", kernal_size=5), "no argument 'kernal_size'; did you mean 'kernel_size'?"),
    ],
)
def test_unknown_names_suggest_the_nearest(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value).endswith(message)


def test_parameters_and_macs_are_the_published_ones():
    """To the printed digit; ConvNeXt-B at 384 is printed as 45.0 once and 45.1 once, and 45.1 is right."""
    with shared("reference/imagenet.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] in ROWS]
    assert len(rows) == 12
    for row in rows:
        cost = load.cost_of(f"convnext_{ROWS[row['model']]}", int(row["image_size"]))
        assert f"{cost.parameters / 1e6:.0f}" == row["params_m"]
        printed = "45.1" if row["gflops"] == "45.0" else row["gflops"]
        assert f"{cost.macs / 1e9:.1f}" == printed, row


@pytest.mark.parametrize(("size", "parameters", "gmacs"), [("small", 22, 4.3), ("base", 87, 16.9), ("large", 306, 59.7)])
def test_isotropic_costs_are_the_published_ones(size, parameters, gmacs):
    cost = load.cost_of(f"convnext_isotropic_{size}")
    assert (round(cost.parameters / 1e6), round(cost.macs / 1e9, 1)) == (parameters, gmacs)


def test_the_head_is_replaced_only_when_asked_or_when_classes_differ(caplog):
    source = random_model("convnext_atto", num_classes=5)
    state, make = source.state_dict(), lambda **how: convnext.create_model("convnext_atto", layer_scale=1.0, weights=state, **how)
    with caplog.at_level(logging.WARNING, "convnext"):
        assert torch.equal(make(num_classes=5).head.weight, source.head.weight)
        assert not torch.equal(make(num_classes=5, new_head=True).head.weight, source.head.weight)
        assert not caplog.messages
        other = make(num_classes=7)
    assert caplog.messages == ["the weights' head has 5 classes, the model 7: the model keeps its fresh head"]
    assert other.head.weight.shape == (7, 320)
    assert other.head.weight.std() < 0.03  # fresh, not zero and not the source's
    assert torch.equal(other.norm.weight, source.norm.weight)


def test_every_key_that_does_not_fit_is_named():
    state = random_model("convnext_atto", num_classes=5).state_dict()
    state["surplus.weight"] = torch.zeros(1)
    del state["stages.1.0.norm.bias"]
    state["stages.0.0.dwconv.weight"] = torch.zeros(40, 1, 5, 5)
    with pytest.raises(ConvnextError) as caught:
        convnext.create_model("convnext_atto", num_classes=5, weights=state)
    message = str(caught.value)
    assert "taken for the official format" in message
    assert "missing: stages.1.0.norm.bias" in message
    assert "unexpected: surplus.weight" in message
    assert "misshapen: stages.0.0.dwconv.weight (40, 1, 5, 5) instead of (40, 1, 7, 7)" in message


@pytest.mark.parametrize("name", convnext.list_models("convnext_*"))
def test_a_bare_state_is_identified(name):
    with torch.device("meta"):
        model = convnext.create_model(name, num_classes=3)
    spec = load.identify(model.state_dict())
    assert spec["name"] == name
    with torch.device("meta"):
        again = convnext.create_model(**spec)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_load_from_a_foreign_file_and_from_our_own(tmp_path):
    model, x = random_model("convnext_atto", num_classes=4, kernel_size=5), torch.randn(1, 3, 64, 64)
    write_weights(tmp_path / "convnext_atto_22k_1k_384.pth", model.state_dict())
    loaded = load.load(tmp_path / "convnext_atto_22k_1k_384.pth")
    assert torch.equal(loaded.model(x), model(x))
    assert (loaded.preprocessing.image_size, loaded.preprocessing.warp, loaded.classes) == (384, True, None)
    description = {"task": "classify", "model": model.spec, "classes": list("abcd"), "preprocessing": loaded.preprocessing.to_json()}
    write_weights(tmp_path / "own.safetensors", model.state_dict(), json.loads(json.dumps(description)))
    own = load.load(tmp_path / "own.safetensors")
    assert torch.equal(own.model(x), model(x))
    assert (own.classes, own.preprocessing) == (list("abcd"), loaded.preprocessing)


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(UsageError, match="convnext_tiny is a name without weights: add --weights with one of fb_in1k"):
        load.load("convnext_tiny")
    with pytest.raises(ConvnextError, match="holds neither best"):
        load.load(tmp_path)
