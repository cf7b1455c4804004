"""What timm and transformers say beside their weights: every tag of timm's ConvNeXts, against timm itself."""

import functools
import json

import pytest
import timm
import torch
import transformers
from helpers import random_model, randomise, relative_error, sample_image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

import convnext
from convnext.data.hub import HubFile
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError
from convnext.models import load
from convnext.models.weights import configuration
from convnext.models.weights.configuration import Shape
from convnext.models.weights.download import Downloaded
from convnext.models.weights.formats import from_native, to_native

TAGS = [tag for tag in timm.list_models("*convnext*", pretrained=True) if not tag.startswith("inception")]
# Networks with other tensors than a ConvNeXt's here, or another function: refused, by their keys or by name.
OTHERS = ("_ols", "_hnf", "_mlp", "_rms", "convnextv2", "test_convnext")
LOADED = [tag for tag in TAGS if not any(other in tag for other in OTHERS)]
COMMIT = "1" * 40


def config_of(tag, **more):
    """config.json as timm writes it."""
    noted = get_pretrained_cfg(tag).to_dict(remove_source=True)
    return {"architecture": noted.pop("architecture"), "num_classes": noted["num_classes"], "pretrained_cfg": noted} | more


@functools.cache
def sizes_of(network):
    with torch.device("meta"):
        built = timm.create_model(network)
    return tuple(len(stage.blocks) for stage in built.stages), tuple(stage["num_chs"] for stage in built.feature_info)


def shape_of(tag):
    depths, widths = sizes_of(tag.split(".")[0])
    return Shape(get_pretrained_cfg(tag).num_classes, depths=depths, widths=widths)


def as_timm_prepares(tag):
    wanted = resolve_data_config(pretrained_cfg=get_pretrained_cfg(tag).to_dict())
    warp, size = wanted["crop_mode"] == "squash", wanted["input_size"][1]
    return ClassifyPreprocessing(size, wanted["crop_pct"], warp, wanted["interpolation"], tuple(wanted["mean"]), tuple(wanted["std"]))


def timm_file(folder, architecture, name="model.safetensors", **arguments):
    """A network of timm with telling weights, and its file."""
    network = randomise(timm.create_model(architecture, **arguments)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, folder / name)
    return network


def write_config(folder, config, name="config.json"):
    (folder / name).write_text(json.dumps(config), "utf-8")


def test_the_tags_that_load_are_all_that_can():
    assert len(LOADED) == 55  # with the two of tanh GELU, which were taken for others, the 57 whose tensors fit


@pytest.mark.parametrize("tag", LOADED)
def test_every_tag_is_prepared_as_timm_prepares_it(tmp_path, tag):
    """By the config.json beside a file, and, where that can't be had, by timm's table for the hub's address and a file of that name."""
    shape, wanted = shape_of(tag), as_timm_prepares(tag)
    write_config(tmp_path, config_of(tag))
    beside = configuration.of(Downloaded(tmp_path / "model.safetensors"), shape)
    assert beside.preprocessing == wanted
    assert beside.function == {"norm_eps": 1e-5 if "xxlarge" in tag else 1e-6}
    assert configuration.of(Downloaded(tmp_path / "elsewhere" / f"{tag}.safetensors"), shape).preprocessing == wanted
    size = tag.split(".")[0]
    if size in convnext.list_models() and tag.split(".")[1] in (entry := load.find(size)).weights:
        assert entry.published(tag.split(".")[1]) == (wanted, get_pretrained_cfg(tag).num_classes)


@pytest.mark.parametrize("tag", ["convnext_tiny.fb_in22k_ft_in1k_384", "convnext_base.clip_laion2b_augreg", "convnext_nano.in12k_ft_in1k"])
def test_pixels_are_timms(tmp_path, tag):
    write_config(tmp_path, config_of(tag))
    how = configuration.of(Downloaded(tmp_path / "model.safetensors"), shape_of(tag)).preprocessing
    image = sample_image(size=(500, 400))
    wanted = create_transform(**resolve_data_config(pretrained_cfg=get_pretrained_cfg(tag).to_dict()))(image)
    assert torch.allclose(how.transform()(image), wanted, atol=1e-5)


def test_a_file_is_loaded_with_its_configuration(tmp_path):
    tag = "convnext_atto.d2_in1k"
    theirs = timm_file(tmp_path, "convnext_atto", num_classes=3)
    stated = config_of(tag, num_classes=3, label_names=["ant", "bee", "wasp"])
    stated["pretrained_cfg"] |= {"input_size": [3, 96, 96], "crop_pct": 1.0, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    stated["pretrained_cfg"] |= {"crop_mode": "squash", "interpolation": "bilinear"}
    write_config(tmp_path, stated)
    found, x = load.load(tmp_path / "model.safetensors"), torch.randn(1, 3, 64, 64)
    assert found.preprocessing == ClassifyPreprocessing(96, 1.0, True, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert found.classes == ["ant", "bee", "wasp"]
    assert relative_error(found.model(x), theirs(x)) < 1e-5


def test_a_number_in_a_name_says_nothing(tmp_path):
    timm_file(tmp_path / "site-1384", "convnext_atto", "fold384.safetensors")
    assert load.load(tmp_path / "site-1384" / "fold384.safetensors").preprocessing.image_size == 224


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_the_epsilon_of_the_configuration_is_taken(tmp_path, eps):
    theirs = timm_file(tmp_path, "convnext_atto", norm_eps=eps)
    write_config(tmp_path, config_of("convnext_atto.d2_in1k", model_args={"norm_eps": eps}))
    x = 1e-2 * torch.randn(1, 3, 64, 64)
    found = load.load(tmp_path / "model.safetensors")
    assert relative_error(found.model(x), theirs(x)) < 1e-5
    again = convnext.create_model("convnext_atto", weights=tmp_path / "model.safetensors").eval()
    assert relative_error(again(x), theirs(x)) < 1e-5
    assert again.spec["norm_eps"] == eps
    assert relative_error(convnext.create_model("convnext_atto", weights=theirs_state(theirs)).eval()(x), theirs(x)) > 1e-6
    with pytest.raises(ConvnextError, match="norm_eps"):
        load.load_weights(convnext.create_model("convnext_atto"), tmp_path / "model.safetensors")
    under = convnext.create_model("upernet_convnext_atto", num_classes=3, weights=tmp_path / "model.safetensors")
    assert under.backbone.stages[0][0].norm.eps == eps


def theirs_state(network):
    return dict(network.state_dict())


def test_the_largest_has_its_epsilon_without_a_configuration():
    with torch.device("meta"):
        state = timm.create_model("convnext_xxlarge", num_classes=5).state_dict()
        ours = convnext.create_model(**load.identify(to_native(state, "timm")))
    assert {module.eps for module in ours.modules() if hasattr(module, "eps")} == {1e-5}


@pytest.mark.parametrize("network", ["test_convnext", "test_convnext2", "test_convnext3"])
@pytest.mark.parametrize("told_by", ["config", "table", "name", "shapes"])
def test_another_activation_is_taken_from_who_says_it_or_refused(tmp_path, network, told_by):
    file = tmp_path / (f"{network}.r160_in1k.safetensors" if told_by == "table" else "model.safetensors")
    theirs, x = timm_file(tmp_path, network, file.name), torch.randn(1, 3, 64, 64)
    if told_by == "config":
        write_config(tmp_path, config_of(f"{network}.r160_in1k"))
    if told_by == "shapes":
        with pytest.raises(ConvnextError, match=f"{network}.*activation is another function than GELU"):
            load.load(file)
        return
    found = load.load(network, file) if told_by == "name" else load.load(file)
    assert relative_error(found.model(x), theirs(x)) < 1e-5


def test_another_network_of_these_sizes_is_not_taken_for_the_one_called_for(tmp_path):
    timm_file(tmp_path, "test_convnext3")
    with pytest.raises(ConvnextError, match="test_convnext2 and test_convnext3"):
        load.load("test_convnext2", tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "arguments", [{"act_layer": "gelu_tanh"}, {"act_layer": "silu"}, {"norm_layer": "rmsnorm2d"}, {"norm_layer": "simplenorm"}]
)
def test_the_layers_of_the_configuration_are_taken(tmp_path, arguments):
    theirs, x = timm_file(tmp_path, "convnext_atto", **arguments), torch.randn(1, 3, 64, 64)
    write_config(tmp_path, config_of("convnext_atto.d2_in1k", model_args=arguments))
    assert relative_error(load.load(tmp_path / "model.safetensors").model(x), theirs(x)) < 1e-5
    again = convnext.create_model(
        "convnext_atto_rms" if "norm_layer" in arguments else "convnext_atto", weights=tmp_path / "model.safetensors"
    )
    assert relative_error(again.eval()(x), theirs(x)) < 1e-5


def test_norms_without_bias_need_someone_who_says_which(tmp_path):
    timm_file(tmp_path, "convnext_femto", norm_layer="rmsnorm2d")
    with pytest.raises(ConvnextError, match="missing: .*bias"):
        load.load(tmp_path / "model.safetensors")
    convnext.create_model("convnext_femto", weights=tmp_path / "model.safetensors", norm_layer="rmsnorm")


@pytest.mark.parametrize(
    "changed", [{"act_layer": "mish"}, {"norm_layer": "batchnorm2d"}, {"output_stride": 16}, {"global_pool": "max"}, {"anything": 1}]
)
def test_what_no_tensor_shows_is_refused(tmp_path, changed):
    timm_file(tmp_path, "convnext_atto")
    write_config(tmp_path, config_of("convnext_atto.d2_in1k", model_args=changed))
    with pytest.raises(ConvnextError, match=f"config.json.*{next(iter(changed))}=.*another function"):
        load.load(tmp_path / "model.safetensors")


def test_another_network_of_the_same_tensors_is_refused(tmp_path):
    timm_file(tmp_path, "efficientnet_lite0")
    for name, arguments in (("efficientnet_lite0.ra_in1k", {}),):
        write_config(tmp_path, config_of(name, **arguments))
    with pytest.raises(ConvnextError, match="efficientnet_lite0, the network here is tf_efficientnet_lite0.*another function"):
        convnext.create_model("efficientnet_lite0", weights=tmp_path / "model.safetensors")


def test_a_configuration_of_another_network_is_ignored(tmp_path, caplog):
    timm_file(tmp_path, "convnext_atto")
    for other in (config_of("convnext_tiny.fb_in22k_ft_in1k_384"), {"model_type": "bert"}, {"architecture": "resnet50"}, {"name": "app"}):
        caplog.clear()
        write_config(tmp_path, other)
        assert load.load(tmp_path / "model.safetensors").preprocessing == ClassifyPreprocessing()
        assert "config.json was ignored: it is of another network" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"architecture": "convnext_atto", "pretrained_cfg": {"input_size": [3, 99999, 99999]}}']
)
def test_a_damaged_configuration_is_one_line(tmp_path, text):
    timm_file(tmp_path, "convnext_atto")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConvnextError, match="config.json"):
        load.load(tmp_path / "model.safetensors")


def transformers_folder(folder, processor=None, **config):
    sizes = {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320], "num_labels": 4}
    theirs = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes | config))
    randomise(theirs).eval().save_pretrained(folder)
    transformers.ConvNextImageProcessor(**processor or {}).save_pretrained(folder)
    return theirs


PROCESSORS = [
    {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    {"size": {"shortest_edge": 64}, "crop_pct": 0.8, "resample": 2},
    {"size": {"shortest_edge": 384}, "crop_pct": 0.875},
]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_transformers_files_are_prepared_as_there(tmp_path, processor):
    transformers_folder(tmp_path, processor)
    how = load.load(tmp_path / "model.safetensors").preprocessing
    image = sample_image(size=(320, 256))  # whose borders are even: half a pixel is rounded the other way there
    wanted = ConvNextImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(how.transform()(image), wanted, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_transformers_epsilon_is_taken(tmp_path, eps):
    theirs, x = transformers_folder(tmp_path, layer_norm_eps=eps), torch.randn(1, 3, 64, 64)
    found = load.load(tmp_path / "model.safetensors")
    assert found.model.norm.eps == eps
    assert relative_error(found.model(x), theirs(x).logits) < 1e-5


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu"])
def test_transformers_activations_are_taken(tmp_path, activation):
    theirs, x = transformers_folder(tmp_path, hidden_act=activation), torch.randn(1, 3, 64, 64)
    assert relative_error(load.load(tmp_path / "model.safetensors").model(x), theirs(x).logits) < 1e-5


def test_transformers_activations_that_no_network_here_has_are_refused(tmp_path):
    transformers_folder(tmp_path, hidden_act="gelu_10")
    with pytest.raises(ConvnextError, match=r"hidden_act is 'gelu_10'.*another function"):
        load.load(tmp_path / "model.safetensors")


def test_transformers_labels_are_taken_and_its_own_are_not(tmp_path):
    transformers_folder(tmp_path / "a", id2label=dict(enumerate("dcba")), label2id={name: i for i, name in enumerate("dcba")})
    assert load.load(tmp_path / "a" / "model.safetensors").classes == list("dcba")
    transformers_folder(tmp_path / "b")
    assert load.load(tmp_path / "b" / "model.safetensors").classes is None


@pytest.mark.parametrize(("size", "resize"), [("tiny", 236), ("small", 230), ("base", 232), ("large", 232)])
def test_torchvisions_weights_are_prepared_as_there(tmp_path, size, resize):
    import torchvision

    from convnext.models.weights.published import from_torchvision

    how, image = from_torchvision(f"convnext_{size}"), sample_image(size=(500, 400))
    assert int(how.image_size / how.crop_ratio) == resize
    wanted = getattr(torchvision.models, f"ConvNeXt_{size.title()}_Weights").IMAGENET1K_V1.transforms()(image)
    assert torch.allclose(how.transform()(image), wanted, atol=1e-5)
    if size == "tiny":
        torch.save(from_native(random_model("convnext_tiny", num_classes=3).state_dict(), "torchvision"), tmp_path / "a.pth")
        assert load.load(tmp_path / "a.pth").preprocessing == how


def test_the_configuration_comes_from_the_commit_of_the_weights(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--body" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    write_config(snapshot, config_of("convnext_nano.r384_in12k_ft_in1k"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    where = HubFile("model", "some/body", COMMIT, "model.safetensors")
    found = configuration.of(
        Downloaded(snapshot / "model.safetensors", on_hub=where, address=str(where)), shape_of("convnext_nano.r384_in12k_ft_in1k")
    )
    assert (found.preprocessing.image_size, found.preprocessing.crop_ratio) == (384, 1.0)
