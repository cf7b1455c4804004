"""Every published value, through the objects that a run builds, against the table in the reference."""

import math
import re
from importlib import resources

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


# ConvNeXt V2: tables 9 to 13 of arXiv 2301.00808. TRAINING.md of its code corrects the base rate of B and L, and names random erasing.
V2_FOLDERS = ("fcmae_to_1k", "fcmae_to_22k", "fcmae_22k_to_1k")
V2 = [name for name in list_recipes() if name.split("/")[0] in V2_FOLDERS]
V2_ROWS = ["base rate", "decay", "layer decay", "batch", "warm-up", "epochs", "smoothing", "mixup", "cutmix", "stochastic depth", "EMA"]
V2_TABLES = {
    ("fcmae_to_1k", "atto"): (2e-4, 0.3, 0.9, 1024, 0, 600, 0.2, 0, 0, 0.1, 0.9999),
    ("fcmae_to_1k", "femto"): (2e-4, 0.05, 0.9, 1024, 0, 600, 0.2, 0.3, 0.3, 0, 0.9999),
    ("fcmae_to_1k", "pico"): (2e-4, 0.3, 0.9, 1024, 0, 600, 0.2, 0.3, 0.3, 0, 0.9999),
    ("fcmae_to_1k", "nano"): (2e-4, 0.3, 0.9, 1024, 0, 600, 0.2, 0.5, 0.5, 0.1, 0.9999),
    ("fcmae_to_1k", "tiny"): (8e-4, 0.05, 0.9, 1024, 40, 300, 0.1, 0.8, 1.0, 0.2, 0.9999),
    ("fcmae_to_1k", "base"): (6.25e-4, 0.05, 0.6, 1024, 20, 100, 0.1, 0.8, 1.0, 0.1, 0.9999),
    ("fcmae_to_1k", "large"): (6.25e-4, 0.05, 0.6, 1024, 20, 100, 0.1, 0.8, 1.0, 0.2, 0.9999),
    ("fcmae_to_1k", "huge"): (1.25e-3, 0.05, 0.75, 1024, 10, 50, 0.1, 0.8, 1.0, 0.3, 0.9999),
    ("fcmae_to_22k", "nano"): (2.5e-4, 0.05, 0.9, 4096, 5, 90, 0.1, 0.8, 1.0, 0, 0),
    ("fcmae_to_22k", "tiny"): (2.5e-4, 0.05, 0.9, 4096, 5, 90, 0.1, 0.8, 1.0, 0, 0),
    ("fcmae_to_22k", "base"): (2.5e-4, 0.05, 0.8, 4096, 5, 90, 0.1, 0.8, 1.0, 0.1, 0),
    ("fcmae_to_22k", "large"): (2.5e-4, 0.05, 0.8, 4096, 5, 90, 0.1, 0.8, 1.0, 0.1, 0),
    ("fcmae_to_22k", "huge"): (2.5e-4, 0.05, 0.8, 4096, 5, 90, 0.1, 0.8, 1.0, 0.3, 0),
    ("fcmae_22k_to_1k", "nano"): (2.5e-5, 1e-8, 0.9, 512, 0, 90, 0.1, 0, 0, 0.1, 0.9999),
    ("fcmae_22k_to_1k", "tiny"): (2.5e-5, 1e-8, 0.9, 512, 0, 90, 0.1, 0, 0, 0.1, 0.9999),
    ("fcmae_22k_to_1k", "base"): (2.5e-5, 1e-8, 0.8, 512, 0, 30, 0.1, 0, 0, 0.2, 0.9999),
    ("fcmae_22k_to_1k", "large"): (2.5e-5, 1e-8, 0.8, 512, 0, 30, 0.1, 0, 0, 0.3, 0.9999),
    ("fcmae_22k_to_1k", "huge"): (2.5e-5, 1e-8, 0.85, 512, 0, 30, 0.1, 0, 0, 0.5, 0),
}
V2_RESULTS = {  # tables 14 and 15: top-1, for pixels a side
    "fcmae_to_1k": {
        "atto_224": 76.7,
        "femto_224": 78.5,
        "pico_224": 80.3,
        "nano_224": 81.9,
        "tiny_224": 83.0,
        "base_224": 84.9,
        "large_224": 85.8,
        "huge_224": 86.3,
    },
    "fcmae_22k_to_1k": {
        "nano_224": 82.1,
        "nano_384": 83.4,
        "tiny_224": 83.9,
        "tiny_384": 85.1,
        "base_224": 86.8,
        "base_384": 87.7,
        "large_224": 87.3,
        "large_384": 88.2,
        "huge_384": 88.7,
        "huge_512": 88.9,
    },
}


def of_v2(name):
    """The folder of a recipe, its size, and the pixels a side."""
    folder, _, rest = name.partition("/convnextv2_")
    size, _, pixels = rest.partition("_")
    return folder, size, int(pixels or 224)


def test_there_is_a_recipe_for_every_published_setting_of_v2():
    assert len(V2) == 8 + 5 + 10
    assert {of_v2(name)[:2] for name in V2} == V2_TABLES.keys()


@pytest.mark.parametrize("name", V2)
def test_v2_settings_are_those_of_the_papers_tables(name):
    folder, size, pixels = of_v2(name)
    recipe = load_recipe(name)
    train, optim, augment = recipe.train, recipe.optim, recipe.augment
    found = (
        *(optim.lr * 256 / train.batch_size, optim.weight_decay, optim.layer_decay, train.batch_size, train.warmup_epochs, train.epochs),
        *(train.label_smoothing, augment.mixup, augment.cutmix, recipe.model.drop_path, train.ema),
    )
    assert dict(zip(V2_ROWS, found, strict=True)) == pytest.approx(dict(zip(V2_ROWS, V2_TABLES[folder, size], strict=True)))
    assert (optim.name, optim.betas, optim.schedule, optim.clip) == ("adamw", (0.9, 0.999), "cosine", None)
    assert (augment.rand_augment, augment.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (recipe.data.num_classes, recipe.data.image_size) == (21841 if folder == "fcmae_to_22k" else 1000, pixels)
    assert (recipe.model.head_init_scale, recipe.eval.warp) == (0.001, pixels >= 384)
    assert recipe.model.weights == (f"runs/convnextv2_{size}_22k" if folder == "fcmae_22k_to_1k" else "fcmae")


@pytest.mark.parametrize("name", V2)
def test_v2_recipes_state_the_published_result(name):
    folder, size, pixels = of_v2(name)
    text = (resources.files("convnext.recipe") / f"{name}.yaml").read_text()
    if folder == "fcmae_to_22k":
        after = {key: top1 for key, top1 in V2_RESULTS["fcmae_22k_to_1k"].items() if key.startswith(size)}
        assert all(f"{top1} % at {key.partition('_')[2]}" in text for key, top1 in after.items())
    else:
        top1 = V2_RESULTS[folder][f"{size}_{pixels}"]
        assert f"# Published: {top1} % top-1" in text


@pytest.mark.parametrize("name", V2)
def test_v2_layer_wise_decay_scales_each_parameter_as_the_published_code_does(name):
    """The code's two kinds: `group` for Base and Large, `single` for the others, whose layers are blocks."""
    _, size, _ = of_v2(name)
    recipe = load_recipe(name, {"model.weights": None})
    with torch.device("meta"):
        model = _build(recipe, 1000)
    state = new_state(model, recipe, torch.device("cpu"))
    single = size not in ("base", "large")
    count = sum(model.depths) if single else 12

    def published_layer(parameter_name):
        part, *numbers = parameter_name.split(".")
        if part == "downsample_layers":
            stage = int(numbers[0])
            return sum(model.depths[:stage]) + 1 if single else {0: 0, 1: 2, 2: 3, 3: 12}[stage]
        if part == "stages":
            stage, block = map(int, numbers[:2])
            return sum(model.depths[:stage]) + block + 1 if single else {0: 1, 1: 2, 2: 3 + block // 3, 3: 12}[stage]
        return count + 1

    set_learning_rate(state.optimizer, 1.0)
    groups = {id(p): group for group in state.optimizer.param_groups for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group["lr"] == pytest.approx(recipe.optim.layer_decay ** (count + 1 - published_layer(parameter_name)))
        assert group["weight_decay"] == (recipe.optim.weight_decay if parameter.ndim > 1 else 0.0)  # none for GRN
