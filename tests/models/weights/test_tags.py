"""The table of published weights: equal to what the installed libraries say, and which of its networks can be built."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file

from convnext.data.hub import HubFile
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.models import load
from convnext.models.registry import BACKBONES, find
from convnext.models.weights import configuration, formats, published
from convnext.models.weights.configuration import Shape
from convnext.models.weights.download import Downloaded
from convnext.models.weights.open import open_weights
from convnext.models.weights.tags import choose, table
from convnext.recipe import load_recipe

COMMIT = "1" * 40
TIMM = [*timm.list_models(pretrained=True, module="convnext"), *timm.list_models(pretrained=True, module="inception_next")]
NETWORKS = sorted({row.network for row in table.rows() if row.source == "timm"})


def test_every_tag_of_timm_is_in_the_table_and_no_other():
    assert sorted(row.name for row in table.rows() if row.source == "timm") == sorted(TIMM)
    assert len(TIMM) == 106  # of timm 1.0.31; a later one may have more: run benchmarks/published_weights.py


@pytest.mark.parametrize("name", TIMM)
def test_the_table_says_what_timm_says(name):
    noted, row = timm.models.get_pretrained_cfg(name).to_dict(), table.find(f"hf://timm/{name}")
    stated = row.as_timm()
    assert {key: stated[key] for key in stated if stated[key] is not None} == {
        key: noted[key] for key in stated if noted.get(key) is not None
    }
    assert (row.address, row.licence) == (f"hf://{noted['hf_hub_id']}", noted["license"])
    assert row.training or row.network.startswith("test_")


@pytest.mark.parametrize("name", TIMM)
def test_every_tag_is_prepared_as_timm_resolves_it(tmp_path, monkeypatch, name):
    """By the table, and by config.json in the hub's cache where its network is known here."""
    noted, row = timm.models.get_pretrained_cfg(name), table.find(f"hf://timm/{name}")
    wanted = timm.data.resolve_data_config(pretrained_cfg=noted.to_dict())
    size, warp = wanted["input_size"][1], wanted["crop_mode"] == "squash"
    how = ClassifyPreprocessing(size, wanted["crop_pct"], warp, wanted["interpolation"], tuple(wanted["mean"]), tuple(wanted["std"]))
    assert published.from_timm(row.as_timm(), name) == how
    if row.network not in BACKBONES:
        return
    snapshot = tmp_path / f"models--timm--{name}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    stated = noted.to_dict(remove_source=True)
    config = {"architecture": stated.pop("architecture"), "num_classes": noted.num_classes, "pretrained_cfg": stated}
    (snapshot / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    where = HubFile("model", f"timm/{name}", COMMIT, "model.safetensors")
    fixed = find(row.network).fixed
    shape = Shape(noted.num_classes, depths=fixed.get("depths"), widths=fixed.get("widths"))
    found = configuration.of(Downloaded(snapshot / "model.safetensors", on_hub=where, address=str(where)), shape)
    assert found.preprocessing == how


@pytest.mark.parametrize("row", [row for row in table.rows() if row.source == "transformers" and row.crop], ids=lambda row: row.name)
def test_transformers_processor_prepares_as_the_table_says(row):
    """Its processor, as the conversion scripts make it for these weights."""
    image_net = {"image_mean": list(row.mean), "image_std": list(row.std), "resample": 3}
    processor = transformers.ConvNextImageProcessor(
        size={"shortest_edge": row.size}, crop_pct=None if row.crop == 1 else row.crop, **image_net
    )
    assert published.from_transformers(processor.to_dict(), row.name) == published.from_timm(row.as_timm(), row.name)
    assert table.find(f"{row.address}@main") is row


@pytest.mark.parametrize("size", ["Tiny", "Small", "Base", "Large"])
def test_the_table_says_what_torchvision_says(size):
    weights = getattr(torchvision.models, f"ConvNeXt_{size}_Weights").IMAGENET1K_V1
    row = table.find(weights.url)
    assert (row.source, row.classes, row.top1) == ("torchvision", 1000, {224: weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]})
    assert find(row.network).published("tv_in1k") == (published.from_torchvision(row.network), 1000)


def test_what_transformers_names_is_in_the_table():
    for config in (transformers.ConvNextConfig, transformers.ConvNextV2Config, transformers.DINOv3ConvNextConfig):
        named = set(re.findall(r"facebook/[\w-]*convnext[\w-]+", config.__doc__ or ""))
        assert named
        assert all(table.find(f"hf://{name}").source == "transformers" for name in named)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_networks_of_the_table_are_those_of_timm(network):
    """Its tags are the registry's, its tensors fit, and its cost is the table's. Networks that are not known here are skipped by name."""
    if network not in BACKBONES:
        pytest.skip(f"the architecture {network} is not known here yet")
    row = next(row for row in table.of_network(network).values() if row.source == "timm")
    assert table.of_network(network).keys() <= find(network).weights.keys()
    with torch.device("meta"):
        theirs = timm.create_model(network, num_classes=row.classes).state_dict()
        ours = find(network).make(num_classes=row.classes).state_dict()
    native = formats.to_native(theirs, formats.recognise(theirs))
    assert {key: tensor.shape for key, tensor in native.items()} == {key: tensor.shape for key, tensor in ours.items()}
    cost = load.cost_of(network, row.size, num_classes=row.classes)
    assert (cost.parameters / 1e6, cost.macs / 1e9) == pytest.approx((row.parameters, row.gmacs), abs=0.0006)
    assert row.gmacs_at(2 * row.size) == pytest.approx(load.cost_of(network, 2 * row.size, num_classes=row.classes).macs / 1e9, rel=0.02)


def test_tags_of_a_name_are_prepared_as_the_table_says():
    for name, entry in BACKBONES.items():
        for tag, row in table.of_network(name).items():
            how, classes = entry.published(tag)
            assert (how, classes) == (published.from_timm(row.as_timm(), "the table"), row.classes)
            assert entry.weights[tag] == row.address


@pytest.mark.parametrize(
    "source",
    [
        "hf://timm/convnextv2_tiny.fcmae",
        "hf://timm/convnextv2_tiny.fcmae@1234abcd",
        "hf://timm/convnextv2_tiny.fcmae/model.safetensors",
        "https://huggingface.co/timm/convnextv2_tiny.fcmae/resolve/main/model.safetensors",
        "https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_tiny_1k_224_fcmae.pt",
        "files/convnextv2_tiny_1k_224_fcmae.pt#model",
        r"C:\files\convnextv2_tiny.fcmae.safetensors",
    ],
)
def test_weights_are_found_however_they_are_named(source):
    row = table.find(source)
    assert (row.network, row.licence, row.is_free) == ("convnextv2_tiny", "cc-by-nc-4.0", False)
    assert "no commercial use" in table.terms(row.licence)
    assert table.find("hf://me/convnextv2_tiny.fcmae") is None
    assert table.find("model.safetensors") is None


@pytest.mark.parametrize("network", ["inception_next_atto", "convnextv2_atto", "convnext_atto_ols"])
def test_an_architecture_that_is_not_known_here_is_named(tmp_path, network):
    if network in BACKBONES:
        pytest.skip(f"the architecture {network} is known here")
    (name,) = (row.name for row in list(table.of_network(network).values())[:1])
    path = tmp_path / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in timm.create_model(network).state_dict().items()}, path)
    with pytest.raises(ConvnextError, match=f"published weights of {network}, an architecture that is not known here yet"):
        load.load(path)
    with pytest.raises(UsageError, match=f"{network} has published weights, but its architecture is not known here yet"):
        find(network)


def test_every_licence_is_free_or_explained():
    assert all(row.is_free or table.terms(row.licence) != row.licence for row in table.rows())


def test_how_many_tags_of_timm_have_an_architecture_here():
    known = [row.name for row in table.rows() if row.source == "timm" and row.network in BACKBONES]
    assert len(known) >= 101, f"{len(known)} of {len(TIMM)}"


@pytest.mark.parametrize("recipe", ["finetune", "detect_finetune", "segment_finetune"])
def test_fine_tuning_starts_from_the_best_free_weights_of_its_size(recipe):
    found = load_recipe(recipe, ["data.train=photos", "data.val=photos"])
    assert (found.model.name.rpartition("convnext_")[2], found.model.weights) == ("tiny", "in12k_ft_in1k")
    weights = find(found.model.name)
    assert table.find(weights.weights[found.model.weights]).licence == "apache-2.0"
    larger = load_recipe(recipe, ["data.train=photos", "data.val=photos", f"model.name={found.model.name.replace('tiny', 'large')}"])
    assert larger.model.weights == "fb_in22k_ft_in1k"
    assert load_recipe(recipe, ["data.train=photos", "data.val=photos", "model.weights=fb_in1k"]).model.weights == "fb_in1k"


def test_the_best_is_the_most_accurate_of_a_free_licence_at_a_usual_size():
    for network in {row.network for row in table.rows()}:
        fitting = [
            row for row in table.of_network(network).values() if row.licence in ("apache-2.0", "mit", "bsd-3-clause") and row.size <= 256
        ]
        accuracies = {row.tag: row.top1[row.size] for row in fitting if row.top1}
        best = choose.best_of(network)
        assert (best.tag if best else None) == (max(accuracies, key=accuracies.get) if accuracies else None), network
    with pytest.raises(UsageError, match="resnet50.*name them .tv_in1k"):
        open_weights("best", "resnet50")
    with pytest.raises(UsageError, match="resnet50.*name them .tv_in1k"):
        load_recipe("finetune", ["data.train=photos", "model.name=resnet50"])


def test_the_documented_choice_is_the_tables():
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "choose-a-model.md").read_text("utf-8")
    named = re.findall(r"^\| `(convnext_[a-z]+)` \| `(.+)` \| (.+) M \| (.+) at (\d+) \| (.+) % \| (.+) \|$", page, re.MULTILINE)
    assert len(named) == 9
    for network, *line in named:
        best = choose.best_of(network)
        wanted = [best.tag, f"{best.parameters:.1f}", f"{best.gmacs:.2f}", str(best.size), f"{best.top1[best.size]:.1f}", best.licence]
        assert line == wanted
