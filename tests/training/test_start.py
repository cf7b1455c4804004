"""What a run takes from the weights that it starts from: mean and std, and a head whose classes are the data's."""

import json

import numpy as np
import pytest
import torch
import yaml
from helpers import image_folder, randomise
from tiny_models import SMALL, create

import convnext
from convnext.data import imagenet
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.models.weights.files import read_weights, write_weights
from convnext.recipe import load_recipe
from convnext.training.run import _build, train
from convnext.training.start import reorder_head, start_from

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
CLASSES = ["ant", "bee", "wasp"]


def own_weights(path, classes=CLASSES, **more):
    model = randomise(convnext.create_model("convnext_tiny", num_classes=len(classes), layer_scale=1.0, **SMALL))
    how = ClassifyPreprocessing(32, mean=MEAN, std=STD).to_json()
    about = {"task": "classify", "model": model.spec, "classes": list(classes), "preprocessing": how, "source": "hf://timm/x@" + "0" * 40}
    write_weights(path, model.state_dict(), about | more)
    return path, model


def recipe(path, *overrides):
    shape = ["model.depths=[1,1,1,1]", "model.widths=[8,16,24,32]", "train.warmup_epochs=0"]
    return load_recipe("finetune", [f"model.weights={path}", "data.train=photos", *shape, *overrides])


def build(start, classes):
    """As a run does."""
    order = start.head_order(classes)
    model = _build(start.recipe, len(classes), start.weights)
    reorder_head(model, order)
    return model


def test_mean_and_std_are_those_of_the_weights_and_said(tmp_path):
    path, _ = own_weights(tmp_path / "own.safetensors")
    start = start_from(recipe(path))
    assert (tuple(start.recipe.data.mean), tuple(start.recipe.data.std)) == (MEAN, STD)
    assert any("data.mean=[0.1, 0.2, 0.3] data.std=[0.5, 0.6, 0.7]" in remark and "of the weights" in remark for remark in start.remarks)
    assert start.source == "hf://timm/x@" + "0" * 40


def test_what_the_recipe_says_stays_and_the_difference_is_reported(tmp_path):
    path, _ = own_weights(tmp_path / "own.safetensors")
    start = start_from(recipe(path, "data.mean=[0.5,0.5,0.5]"))
    assert (start.recipe.data.mean, tuple(start.recipe.data.std)) == ((0.5, 0.5, 0.5), STD)
    assert any(
        "data.mean=[0.5, 0.5, 0.5] as the recipe says; the weights expect data.mean=[0.1, 0.2, 0.3]" in remark for remark in start.remarks
    )


@pytest.mark.parametrize(
    ("file", "licence"), [("convnext_tiny.eupe_lvd1689m.pth", "no commercial use"), ("convnext_tiny_22k_224.pth", "mit")]
)
def test_the_licence_of_the_weights_is_said(tmp_path, file, licence):
    torch.save(create("convnext_tiny").state_dict(), tmp_path / file)
    assert licence in start_from(recipe(tmp_path / file)).remarks[0]
    path, _ = own_weights(tmp_path / "own.safetensors", source="hf://timm/convnextv2_tiny.fcmae@" + "0" * 40)
    assert "licence: cc-by-nc-4.0 (no commercial use)" in start_from(recipe(path)).remarks[0]


def test_published_weights_change_nothing_of_published_recipes(tmp_path):
    state = create("convnext_tiny").state_dict()
    torch.save({"model": state}, tmp_path / "convnext_tiny_22k_1k_224.pth")
    before = recipe(tmp_path / "convnext_tiny_22k_1k_224.pth")
    after = start_from(before).recipe
    assert after == before
    assert (after.data.mean, after.data.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_run_and_its_resumption_use_and_record_them(tmp_path, capsys):
    path, _ = own_weights(tmp_path / "own.safetensors")
    photos, output = image_folder(tmp_path / "photos", each=5), tmp_path / "run"
    settings = ["model.weights=" + str(path), f"data.train={photos}", "model.depths=[1,1,1,1]", "model.widths=[8,16,24,32]"]
    settings += [
        "data.image_size=32",
        "data.workers=0",
        "train.batch_size=4",
        "train.warmup_epochs=0",
        "train.epochs=1",
        "augment.rand_augment=null",
    ]
    train("finetune", settings, output=output)
    assert "images are normalised by data.mean=[0.1, 0.2, 0.3]" in capsys.readouterr().err
    assert yaml.safe_load((output / "recipe.yaml").read_text())["data"]["mean"] == list(MEAN)
    about = read_weights(output / "last.safetensors")[1]
    assert about["preprocessing"]["mean"] == list(MEAN)
    assert about["source"] == "hf://timm/x@" + "0" * 40
    assert json.loads((output / "environment.json").read_text())["weights"] == about["source"]
    train("finetune", settings, output=output, resume=True)


def test_a_head_is_kept_for_the_same_classes_only(tmp_path):
    path, model = own_weights(tmp_path / "own.safetensors")
    start = start_from(recipe(path, "model.keep_head=true"))
    assert torch.equal(build(start, CLASSES).head.weight, model.head.weight)
    for others in (["ant", "bee", "zz"], ["ant", "bee"], [*CLASSES, "zz"], ["0", "1", "2"]):
        with pytest.raises(UsageError, match="keep_head: the weights' classes are not the data's, ant, bee, wasp instead of"):
            build(start, others)
    turned = build(start, ["wasp", "ant", "bee"])
    assert torch.equal(turned.head.weight, model.head.weight[[2, 0, 1]])
    assert torch.equal(turned.head.bias, model.head.bias[[2, 0, 1]])
    assert turned.head.weight.is_leaf
    assert turned.head.weight.requires_grad


def test_a_head_whose_classes_nothing_names_is_not_kept_but_imagenets(tmp_path):
    torch.save(create("convnext_tiny").state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UsageError, match="keep_head: .*bare.pth does not name its 3 classes"):
        build(start_from(recipe(tmp_path / "bare.pth", "model.keep_head=true")), CLASSES)
    model = randomise(convnext.create_model("convnext_tiny", num_classes=1000, layer_scale=1.0, **SMALL))
    torch.save(model.state_dict(), tmp_path / "imagenet.pth")
    start, synsets = start_from(recipe(tmp_path / "imagenet.pth", "model.keep_head=true")), imagenet.synsets(1000)
    for classes in (synsets, imagenet.descriptions(1000), [str(i) for i in range(1000)]):
        assert torch.equal(build(start, classes).head.weight, model.head.weight)
    order = np.random.default_rng(0).permutation(1000)
    assert torch.equal(build(start, [synsets[i] for i in order]).head.weight, model.head.weight[torch.from_numpy(order)])
    with pytest.raises(UsageError, match="keep_head"):
        build(start, [*synsets[:-1], "n99999999"])


def test_a_file_without_a_head_has_none_to_keep(tmp_path):
    model = convnext.create_model("convnext_tiny", num_classes=0, layer_scale=1.0, **SMALL)
    torch.save({"state_dict": {f"model.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "w.ckpt")
    with pytest.raises(ConvnextError, match="w.ckpt has no head to keep, only a network to put one on"):
        start_from(recipe(tmp_path / "w.ckpt", "model.head_init_scale=1", "model.keep_head=true")).head_order(CLASSES)
    built = build(start_from(recipe(tmp_path / "w.ckpt", "model.head_init_scale=1")), CLASSES)
    assert torch.equal(built.stages[3][0].dwconv.weight, model.stages[3][0].dwconv.weight)


def test_a_backbones_weights_have_no_head_for_a_segmenter(tmp_path):
    path, _ = own_weights(tmp_path / "own.safetensors")
    shape = {"model.depths": [1, 1, 1, 1], "model.widths": [8, 16, 24, 32]}
    start = start_from(load_recipe("segment_finetune", shape | {"model.weights": str(path), "model.keep_head": True}))
    assert tuple(start.recipe.data.mean) == MEAN
    with pytest.raises(ConvnextError, match="no head to keep"):
        build(start, CLASSES)
