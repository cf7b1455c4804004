"""Networks from outside the package: what the package asks of them, their weight files, heads over them."""

import copy
import json
import pickle

import pytest
import torch
from registered import forgetting
from safetensors.torch import load_file, save_file
from torch import nn

import convnext
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.models import registry
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.freeze import freeze
from convnext.models.load import load
from convnext.models.register import imports_of, register_backbone, register_head
from convnext.models.weights.files import read_weights, write_weights


class Pyramid(nn.Module):
    """Four maps of strides 4 to 32. Its constructor reads a number of a tensor, and fills a buffer that no file holds."""

    def __init__(self, num_classes=10, width=8, *, drop_path=0.0):
        super().__init__()
        self.channels = (width,) * 4
        self.rates = [rate.item() for rate in torch.linspace(0, drop_path, 4)]
        self.register_buffer("shift", torch.full((1,), 0.5), persistent=False)
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 2, 2), nn.BatchNorm2d(width)) for _ in range(3))
        self.head = nn.Linear(width, num_classes)

    def stages_of_parameters(self):
        parts = [(name, name.split(".")) for name, _ in self.named_parameters()]
        return {name: int(number) + 1 if part == "stages" else 0 for name, (part, number, *_) in parts if part != "head"}

    def features(self, x):
        maps = [self.stem(x) + self.shift]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def forward(self, x):
        return self.head(self.features(x)[-1].mean((2, 3)))


class Output:
    def __init__(self, logits):
        self.logits = logits


class LikeTransformers(nn.Module):
    """With a key word argument, an output with logits, and parameters of its own names."""

    def __init__(self, num_classes):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.classifier = nn.Linear(4, num_classes)

    def no_weight_decay(self):
        return {"encoder.weight"}

    def layer_group(self, name):
        return int(name.startswith("classifier"))

    def forward(self, pixel_values):
        return Output(self.classifier(self.encoder(pixel_values.mean((2, 3)))))


class Sum(nn.Module):
    """A head: a segmenter of one convolution on the coarsest map."""

    def __init__(self, backbone, num_classes, *, kernel=1):
        super().__init__()
        self.backbone = backbone
        backbone.drop_head()
        self.classify = nn.Conv2d(backbone.channels[-1], num_classes, kernel, padding=kernel // 2)

    def features(self, x):
        return self.backbone.features(x)

    def forward(self, x):
        return nn.functional.interpolate(self.classify(self.features(x)[-1]), x.shape[-2:])


@pytest.fixture(autouse=True)
def registered():
    """The names, for one test."""
    with forgetting():
        register_backbone("pyramid", image_size=64)(Pyramid)
        register_backbone("like_transformers")(LikeTransformers)
        register_head("sum", task="segment")(Sum)
        yield


def test_a_registered_network_is_built_like_any_other():
    model = convnext.create_model("pyramid", num_classes=7, width=16, drop_path=0.3)
    assert model.spec == {"name": "pyramid", "num_classes": 7, "in_channels": 3, "width": 16}
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert list(model.state_dict()) == list(Pyramid().state_dict())  # the network's own names
    assert (model.channels, model.strides, model.head_name) == ((16,) * 4, (4, 8, 16, 32), "head")
    assert {"pyramid", "upernet_pyramid", "mask_rcnn_pyramid", "sum_pyramid", "sum_convnext_tiny"} <= set(convnext.list_models())
    assert "upernet_like_transformers" not in convnext.list_models()  # it has no maps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depth": 3}, "pyramid has no argument 'depth'"),
        ({"in_channels": 4}, "pyramid has no argument 'in_channels': its constructor must take one"),
        ({"widht": 4}, "did you mean 'width'"),
    ],
)
def test_an_argument_that_the_constructor_lacks_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        convnext.create_model("pyramid", **given)


def test_a_constructor_that_fails_is_named():
    with pytest.raises(ConvnextError, match=r"the network pyramid can't be built: RuntimeError: .*shows where"):
        convnext.create_model("pyramid", width=-1)

    class Windows(nn.Module):
        def __init__(self, width):
            super().__init__()

    register_backbone("windows")(type("Windows", (ConvNeXt,), {"block": Windows}))
    with pytest.raises(ConvnextError, match=r"the network windows can't be built: TypeError: .*unexpected keyword argument 'layer_scale'"):
        convnext.create_model("windows")
    with pytest.raises(UsageError, match="unknown model 'window_net'.* is given with --import my_module"):
        convnext.create_model("window_net")


def test_groups_and_decay_have_defaults():
    model = convnext.create_model("pyramid")
    groups = {name: model.layer_group(name) for name, _ in model.named_parameters()}
    assert [groups[f"network.{name}.weight"] for name in ("stem", "stages.0.0", "stages.0.1", "stages.2.0", "head")] == [0, 1, 1, 3, 4]
    assert "network.stages.0.1.weight" in model.no_weight_decay()
    assert "network.stem.weight" not in model.no_weight_decay()
    own = convnext.create_model("like_transformers", num_classes=3)
    assert own.layer_group("network.classifier.bias") == 1
    assert own.no_weight_decay() == {"network.encoder.weight", "network.encoder.bias", "network.classifier.bias"}
    assert own(torch.zeros(2, 3, 8, 8)).shape == (2, 3)  # the output's logits


def test_stages_are_frozen_where_the_network_says_which_they_are():
    model = convnext.create_model("pyramid")
    freeze(model, 1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[0].removeprefix("network.") for name in trained} == {
        "stages.1.0", "stages.1.1", "stages.2.0", "stages.2.1", "head",
    }  # fmt: skip
    under_a_head = convnext.create_model("upernet_pyramid", channels=8, auxiliary_channels=8)
    freeze(under_a_head, "head_only")
    assert not any(parameter.requires_grad for name, parameter in under_a_head.named_parameters() if ".stages." in name)
    with pytest.raises(UsageError, match="like_transformers does not say which of its parameters belong to which stage"):
        freeze(convnext.create_model("like_transformers"), 1)


def test_copies_states_and_pickles():
    model = convnext.create_model("pyramid").eval()
    image = torch.randn(1, 3, 64, 64)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(image), model(image))
    fresh = convnext.create_model("pyramid").eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(image), model(image))
    within = nn.ModuleDict({"inner": convnext.create_model("pyramid")})
    within.load_state_dict({f"inner.{key}": value for key, value in model.state_dict().items()})
    assert torch.equal(within["inner"].eval()(image), model(image))
    with pytest.raises(RuntimeError, match="head.bias"):
        fresh.load_state_dict({key: value for key, value in model.state_dict().items() if key != "head.bias"})


def saved(path, name="pyramid", **arguments):
    model = convnext.create_model(name, **arguments).eval()
    about = {"task": "classify", "model": model.spec, "classes": None, "preprocessing": ClassifyPreprocessing(64).to_json()}
    write_weights(path, model.state_dict(), about)
    return model


def test_a_weight_file_names_the_module_that_it_needs(tmp_path):
    model = saved(tmp_path / "net.safetensors", num_classes=5, width=12)
    assert read_weights(tmp_path / "net.safetensors")[1]["imports"] == [__name__]
    loaded = load(tmp_path / "net.safetensors").model
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(image), model(image))
    del registry.BACKBONES["pyramid"]
    with pytest.raises(ConvnextError, match=rf"holds a pyramid, which is not known here; add --import {__name__} \(in Python, import"):
        load(tmp_path / "net.safetensors")


def test_arguments_of_ones_own_may_have_names_of_the_packages(tmp_path):
    """Whose bounds are for the package's constructors alone."""

    class Named(LikeTransformers):
        def __init__(self, num_classes, depth=1, regime="t", channels=None):
            super().__init__(num_classes)

    register_backbone("like_transformers")(Named)
    saved(tmp_path / "net.safetensors", "like_transformers", num_classes=3, depth=400, regime="own", channels=[1, 2])
    assert load(tmp_path / "net.safetensors").model.spec["channels"] == [1, 2]


def test_nothing_is_imported_because_a_file_names_it(tmp_path, monkeypatch):
    saved(tmp_path / "net.safetensors")
    about = read_weights(tmp_path / "net.safetensors")[1] | {"imports": ["trap"], "model": {"name": "trapped", "num_classes": 3}}
    save_file(load_file(tmp_path / "net.safetensors"), tmp_path / "trap.safetensors", {"convnext": json.dumps(about)})
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConvnextError, match="add --import trap"):
        load(tmp_path / "trap.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "convnext_tiny", "num_classes": 3, "width_of": 3}}, "model.width_of: Extra inputs are not permitted"),
        ({"model": {"name": "convnext_tiny", "num_classes": 3, "depths": [10**4] * 4}, "imports": ["x"]}, "of other sizes than its"),
        ({"model": {"name": "pyramid", "num_classes": 3, "width": [[1]]}, "imports": ["x"]}, "model.width"),
        ({"model": {"name": "pyramid", "num_classes": 3, "other": {"a": 1}}, "imports": ["x"]}, "model.other"),
        ({"imports": "x"}, "imports: "),
        ({"imports": ["x"] * 17}, "imports: "),
        ({"task": "unheard", "imports": ["x"]}, "for the task 'unheard', which is not known here; add --import x"),
    ],
)
def test_a_strangers_description_is_checked(change, message, tmp_path):
    saved(tmp_path / "net.safetensors")
    about = {key: value for key, value in read_weights(tmp_path / "net.safetensors")[1].items() if key != "imports"} | change
    save_file(load_file(tmp_path / "net.safetensors"), tmp_path / "odd.safetensors", {"convnext": json.dumps(about)})
    with pytest.raises(ConvnextError, match=message):
        load(tmp_path / "odd.safetensors")


def test_weights_of_other_classes_keep_all_but_the_head(tmp_path):
    model = saved(tmp_path / "net.safetensors", num_classes=5)
    other = convnext.create_model("pyramid", num_classes=3, weights=str(tmp_path / "net.safetensors"))
    state = other.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items() if not key.startswith("head."))
    assert state["head.weight"].shape == (3, 8)


@torch.no_grad()
def test_detectors_and_segmenters_over_a_network_from_outside():
    image = torch.zeros(1, 3, 64, 64)
    segmenter = convnext.create_model("upernet_pyramid", num_classes=3, channels=16).eval()
    assert segmenter(image).shape == (1, 3, 64, 64)
    assert not [key for key in segmenter.state_dict() if "backbone.head" in key or "network" in key]
    assert segmenter.layer_group("backbone.network.stages.1.0.weight") == 2
    own = convnext.create_model("sum_convnext_atto", num_classes=4, kernel=3, in_channels=4, drop_path=0.1).eval()
    assert own(torch.zeros(1, 4, 64, 64)).shape == (1, 4, 64, 64)
    assert own.spec == {"name": "sum_convnext_atto", "num_classes": 4, "in_channels": 4, "kernel": 3}
    assert own.count_classes(own.state_dict()) == 4
    assert own.is_of_classes("classify.weight")
    assert imports_of("sum_convnext_atto", "segment") == imports_of("upernet_pyramid", "segment") == [__name__]
    assert imports_of("convnext_tiny", "classify") == []


def test_a_head_is_built_from_backbone_and_number():
    with pytest.raises(UsageError, match=r"the head 'odd' is built from \(backbone, num_classes, …\), not from \(num_classes, "):
        register_head("odd", task="segment")(Pyramid)
    with pytest.raises(UsageError, match="unknown task 'segmnt'; did you mean 'segment'"):
        register_head("odd", task="segmnt")
    with pytest.raises(UsageError, match="the backbone 'convnext_tiny' exists already, in convnext"):
        register_backbone("convnext_tiny")(Pyramid)


def test_its_cost_is_counted():
    cost = convnext.models.load.cost_of("pyramid", num_classes=10)
    assert cost.parameters == sum(parameter.numel() for parameter in Pyramid().parameters())
    assert cost.macs == 8 * 3 * 16 * 16**2 + 8 * 8 * 4 * (8**2 + 4**2 + 2**2) + 80
    for name in ("upernet_pyramid", "mask_rcnn_pyramid", "sum_pyramid", "sum_convnext_atto"):  # one part of each, or both, from outside
        assert convnext.models.load.cost_of(name, image_size=64).macs > cost.macs
