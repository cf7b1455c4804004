"""Every published value, through the objects that a run builds, against the table in the reference."""

import math
import re

import numpy as np
import pytest
import torch
from helpers import shared

from convnext.data.transforms.classify import batch_mixing, train_transform
from convnext.models.backbones.convnext import Block
from convnext.recipe import list_recipes, load_recipe
from convnext.tasks.classify.task import ClassifyTask, augmentation
from convnext.training.optim import learning_rate, set_learning_rate
from convnext.training.run import _build
from convnext.training.state import new_state

LETTERS = {"tiny": "T", "small": "S", "base": "B", "large": "L", "xlarge": "XL"}
COLUMNS = {"imagenet1k": 0, "imagenet22k": 1, "imagenet1k_384": 2, "imagenet22k_to_1k": 3}
PUBLISHED = [name for name in list_recipes() if name.split("/")[0] in COLUMNS and "isotropic" not in name]
ISOTROPIC = [name for name in list_recipes() if "isotropic" in name]


def table():
    """The classification table of recipes.md: row name to its four columns."""
    text = shared("reference/recipes.md").read_text().split("## COCO")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def cell(row, name):
    return table()[row][COLUMNS[name.split("/")[0]]]


def size_of(name):
    return next(size for size in sorted(LETTERS, key=len, reverse=True) if f"_{size}" in name)


def built(name):
    """The state of a run before its first step, without random weights or a download."""
    recipe = load_recipe(name, {"model.weights": None})
    with torch.device("meta"):
        model = _build(recipe, 21841 if name.startswith("imagenet22k/") else 1000)
    return recipe, model, new_state(model, recipe, torch.device("cpu"))


def test_there_is_a_recipe_for_every_published_size():
    assert len(PUBLISHED) == 4 + 5 + 2 + 2 * 5
    assert len(ISOTROPIC) == 3
    for name in PUBLISHED:
        sizes = re.findall(r"\b(T|S|B|L|XL) ", cell("stochastic depth", name))
        assert LETTERS[size_of(name)] in sizes


@pytest.mark.parametrize("name", PUBLISHED)
def test_optimizer_schedule_and_stochastic_depth(name):
    recipe, model, state = built(name)
    batch, lr, decay = (float(x) for x in cell("total batch / peak lr / weight decay", name).split("/"))
    epochs, warmup = (int(x) for x in cell("epochs / warm-up epochs", name).split("/"))
    assert recipe.train.batch_size == batch
    assert isinstance(state.optimizer, torch.optim.AdamW)
    by_parameter = {id(p): group for group in state.optimizer.param_groups for p in group["params"]}
    assert all((g["betas"], g["eps"]) == ((0.9, 0.999), 1e-8) for g in state.optimizer.param_groups)
    for _, parameter in model.named_parameters():
        assert by_parameter[id(parameter)]["weight_decay"] == (decay if parameter.ndim > 1 else 0.0)

    per_epoch = 1281167 // recipe.train.batch_size if "22k/" not in name else 3000
    total, warm = recipe.train.epochs * per_epoch, round(recipe.train.warmup_epochs * per_epoch)
    assert (recipe.train.epochs, warm) == (epochs, warmup * per_epoch)
    at = [learning_rate(step, warm, total, recipe.optim.lr, recipe.optim.min_lr) for step in range(total)]
    if warmup:
        assert at[0] == 0.0
        assert np.allclose(np.diff(at[:warm]), lr / (warm - 1))
    assert max(at) == pytest.approx(lr)
    middle = warm + (total - warm) // 2
    assert at[middle] == pytest.approx(1e-6 + 0.5 * (lr - 1e-6) * (1 + math.cos(math.pi * (middle - warm) / (total - warm))))
    assert at[-1] == pytest.approx(1e-6, rel=0.01)

    depth = float(re.search(rf"\b{LETTERS[size_of(name)]} ([\d.]+)", cell("stochastic depth", name)).group(1))
    rates = [block.drop_path.rate for block in model.modules() if isinstance(block, Block)]
    assert rates == pytest.approx(np.linspace(0, depth, len(rates)))
    assert recipe.optim.clip is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_layer_wise_decay_scales_each_parameter_as_the_published_groups_do(name):
    _, model, state = built(name)
    decay = cell("layer-wise lr decay", name)
    factor = 1.0 if decay == "none" else float(decay)
    n = 12 if model.depths[2] == 27 else 6

    def published_group(parameter_name):
        if parameter_name.startswith("downsample_layers"):
            return {0: 0, 1: 2, 2: 3, 3: n}[int(parameter_name.split(".")[1])]
        if parameter_name.startswith("stages"):
            stage, block = map(int, parameter_name.split(".")[1:3])
            return {0: 1, 1: 2, 2: 3 + block // 3, 3: n}[stage]
        return n + 1

    set_learning_rate(state.optimizer, 1.0)
    rates = {id(p): group["lr"] for group in state.optimizer.param_groups for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(factor ** (n + 1 - published_group(parameter_name)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_mixing_average_head_and_weights(name):
    recipe, _, state = built(name)
    mix = batch_mixing(recipe.augment.mixup, recipe.augment.cutmix, recipe.train.label_smoothing, 1000)
    if cell("mixup / cutmix", name) == "none":
        assert mix is None
    else:
        mixup = mix.__closure__[0].cell_contents
        alphas = [float(x) for x in cell("mixup / cutmix", name).split("/")]
        assert [mixup.mixup_alpha, mixup.cutmix_alpha] == alphas
        assert (mixup.mix_prob, mixup.switch_prob, mixup.mode, mixup.label_smoothing) == (1.0, 0.5, "batch", 0.1)
    average = table()["EMA of weights, decay 0.9999"][COLUMNS[name.split("/")[0]]]
    wanted = average.startswith("yes") or (average == "XL only" and size_of(name) == "xlarge")
    assert (state.ema is not None) == wanted
    assert recipe.train.ema == (0.9999 if wanted else 0.0)
    assert recipe.model.head_init_scale == float(cell("head init scale", name))
    start = {"imagenet1k": None, "imagenet22k": None, "imagenet1k_384": "fb_in1k", "imagenet22k_to_1k": "fb_in22k"}
    assert load_recipe(name).model.weights == start[name.split("/")[0]]


@pytest.mark.parametrize("name", PUBLISHED + ISOTROPIC)
def test_augmentation_and_preprocessing(name):
    recipe = load_recipe(name)
    size = 384 if "384" in name else 224
    steps = train_transform(augmentation(recipe))
    crop, flip = steps.transforms[:2]
    assert (crop.size, crop.mode, crop.antialias) == ((size, size), "bicubic", True)
    assert (crop.crop.scale, crop.crop.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert flip.keywords == {"probability": 0.5}
    assert "ColorJitter" not in repr(steps)
    found = {type(step).__name__: step for step in steps.transforms}
    augment, erase = found["RandAugment"], found["RandomErasing"]
    assert (len(augment.ops), augment.num_layers) == (15, 2)
    assert all((op.magnitude, op.magnitude_std, op.prob) == (9, 0.5, 0.5) for op in augment.ops)
    assert (erase.probability, erase.rand_color, erase.per_pixel) == (0.25, False, True)
    test = ClassifyTask().preprocessing(recipe)
    assert (test.image_size, test.warp, test.interpolation) == (size, size == 384, "bicubic")
    assert test.warp or test.crop_ratio == 0.875
    assert recipe.train.label_smoothing == 0.1


@pytest.mark.parametrize(("size", "depth", "scaled"), [("small", 0.1, False), ("base", 0.2, False), ("large", 0.5, True)])
def test_isotropic(size, depth, scaled):
    recipe, model, _ = built(f"imagenet1k/convnext_isotropic_{size}")
    assert (recipe.train.epochs, recipe.train.warmup_epochs, recipe.train.ema, recipe.optim.lr) == (300, 50, 0.9999, 4e-3)
    assert model.blocks[-1].drop_path.rate == depth
    assert (model.blocks[0].gamma is not None) == scaled
