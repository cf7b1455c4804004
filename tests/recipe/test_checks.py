"""Recipes that contradict themselves or set keys without effect are refused, with the reason and the remedy."""

from functools import partial

import pytest

from convnext import tasks
from convnext.errors import UsageError
from convnext.recipe import Recipe, keys, list_recipes, load_recipe
from convnext.recipe.checks import _USED_BY, check_warmup, is_used, warmup_steps
from convnext.recipe.section import RecipeSection

TASKS = {"classify": "digits", "detect": "detect_digits", "segment": "segment_digits", "pretrain": "pretrain_digits"}
BY_THE_LOOP = {
    "data.workers",
    "data.max_corrupt",
    "eval.best_by",
    "eval.metrics",
    "eval.loss",
    "data.fold",
    "data.std",
}  # or by a method of the section


class Watched:
    """A recipe that notes which keys are read."""

    def __init__(self, section, seen, prefix=""):
        self.section, self.seen, self.prefix = section, seen, prefix

    def __getattr__(self, name):
        value = getattr(self.section, name)
        if isinstance(value, RecipeSection):
            return Watched(value, self.seen, f"{self.prefix}{name}.")
        self.seen.add(self.prefix + name)
        return value


@pytest.mark.parametrize("task", TASKS)
def test_the_keys_that_a_task_uses_are_those_that_are_accepted(task):
    seen = set()
    recipe = Watched(load_recipe(TASKS[task], ["data.val=null"]), seen)
    room = tasks.get(task)
    data = room.open(recipe)
    room.criterion(recipe, data)
    room.preprocessing(recipe)
    for key in keys():
        if key.partition(".")[0] in ("data", "augment", "detect", "segment", "eval") or key == "train.label_smoothing":
            users = _USED_BY.get(key) or _USED_BY.get(f"{key.partition('.')[0]}.") or tuple(TASKS)
            assert (key in seen) == (task in users) or key in BY_THE_LOOP, key


@pytest.mark.parametrize("name", list_recipes())
def test_the_packages_own_recipes_set_no_useless_key(name):
    load_recipe(name, {"data.train": "photos"})


@pytest.mark.parametrize(
    ("task", "override"),
    [
        ("classify", "detect.test_short=400"),
        ("classify", "detect.short=[400]"),
        ("classify", "segment.distort=false"),
        ("classify", "segment.scale=null"),
        ("detect", "data.image_size=640"),
        ("segment", "data.keep_empty=true"),
        ("classify", "data.classes=[ant]"),
        ("classify", "data.crowds=objects"),
        ("classify", "data.masks_from_boxes=true"),
        ("detect", "eval.warp=true"),
        ("detect", "augment.mixup=0.8"),
        ("detect", "segment.max_class_share=0.5"),
        ("segment", "augment.cutmix=1.0"),
        ("segment", "augment.crop_scale=[0.5,1]"),
        ("segment", "augment.crop_aspect=[1,1]"),
        ("segment", "augment.rand_augment=rand-m9"),
        ("segment", "augment.random_erasing=0.1"),
        ("segment", "augment.color_jitter=0.4"),
        ("segment", "train.label_smoothing=0"),
        ("segment", "eval.crop_ratio=1.0"),
        ("segment", "eval.interpolation=bilinear"),
        ("segment", "detect.crop=[100,200]"),
    ],
)
def test_a_key_of_another_task_is_refused(task, override):
    key = override.partition("=")[0]
    with pytest.raises(UsageError) as caught:
        load_recipe(TASKS[task], [override])
    assert f"{key}=" in str(caught.value)
    assert f"has no effect: task {task} does not use it, only " in str(caught.value)
    remedy = str(caught.value).rpartition("set its default: ")[2]
    assert load_recipe(TASKS[task], [remedy]) == load_recipe(TASKS[task])


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (
            "finetune",
            ["augment.color_jitter=0.4"],
            "augment.color_jitter=0.4 has no effect: augment.rand_augment replaces it; remove it, or",
        ),
        ("digits", ["eval.warp=true", "eval.crop_ratio=1"], "eval.crop_ratio=1 has no effect: eval.warp takes the whole image"),
        ("digits", ["eval.letterbox=true", "eval.warp=true"], "eval.warp=true has no effect: eval.letterbox takes the whole image"),
        ("finetune", ["data.val=photos", "data.val_fraction=0.1"], "data.val_fraction=0.1 has no effect: data.val names"),
        (
            "detect_digits",
            ["model.masks=false", "data.masks_from_boxes=true"],
            "data.masks_from_boxes=true has no effect: model.masks=false",
        ),
        ("detect_digits", ["data.val_fraction=0.1"], "data.val_fraction=0.1 has no effect: data.val names"),
        ("digits", ["model.keep_head=true"], "model.keep_head=true has no effect: without model.weights"),
        ("digits", ["optim.layer_decay_by=block"], "optim.layer_decay_by=block has no effect: optim.layer_decay=1 has no groups"),
        ("digits", ["optim.momentum=0.9"], "optim.momentum=0.9 has no effect: only optim.name=sgd and optim.name=muon have it"),
        ("digits", ["optim.momentum=0.9", "optim.name=lamb"], "optim.momentum"),
        ("digits", ["optim.name=sgd", "optim.betas=[0.9,0.99]"], "optim.betas=[0.9,0.99] has no effect: optim.name=sgd has optim.momentum"),
        ("digits", ["optim.name=sgd", "optim.eps=1e-6"], "optim.eps=1e-06 has no effect"),
        ("digits", ["optim.milestones=[8,11]"], "optim.milestones=[8,11] has no effect: only optim.schedule=step"),
        ("detect_finetune", ["optim.min_lr=0"], "optim.min_lr=0 has no effect: optim.schedule=step"),
        ("digits", ["optim.warmup_start=0.1"], "optim.warmup_start=0.1 has no effect: the warm-up of optim.schedule=cosine"),
        (
            "digits",
            ["train.warmup_steps=5", "train.warmup_epochs=2"],
            "train.warmup_epochs=2 has no effect: train.warmup_steps replaces it",
        ),
    ],
)
def test_a_key_without_effect_beside_another_is_refused(recipe, overrides, message):
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe, overrides)
    assert message in str(caught.value)


def test_such_keys_are_accepted_where_they_have_an_effect_or_are_the_recipes_own():
    for recipe, overrides in (
        ("digits", ["eval.warp=true"]),  # the recipe's crop_ratio loses its effect by what the user wants
        ("finetune", ["augment.trivial_augment=true"]),
        ("digits", ["augment.rand_augment=null", "augment.color_jitter=0.4"]),
        ("digits", ["optim.name=sgd", "optim.momentum=0.8"]),
        ("digits", ["optim.name=muon", "optim.momentum=0.8", "optim.betas=[0.9,0.95]", "optim.eps=1e-6"]),
        ("digits", ["optim.schedule=step", "optim.milestones=[8,11]", "optim.warmup_start=0.1"]),
        ("digits", ["data.val=null", "data.val_fraction=0.1"]),
        ("segment_digits", ["data.image_size=96", "segment.window=96", "segment.stride=64"]),
    ):
        load_recipe(recipe, overrides)


def test_what_a_recipe_sets_for_its_own_task_is_left_out_for_another():
    augment = load_recipe("digits", ["task=segment"]).augment
    assert augment.crop_scale == type(augment).model_fields["crop_scale"].default
    with pytest.raises(UsageError, match="train.label_smoothing=0.2 has no effect: task regress does not use it"):
        load_recipe("digits", ["task=regress", "train.label_smoothing=0.2"])


def test_a_way_to_count_the_warm_up_replaces_that_of_the_recipe():
    assert load_recipe("digits", ["train.warmup_steps=5"]).train.warmup_steps == 5
    train = load_recipe("segment_finetune", ["train.warmup_epochs=2"]).train
    assert (train.warmup_steps, train.warmup_epochs) == (None, 2)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("digits", ["optim.lr=.inf"], "optim.lr: Input should be a finite number, not inf"),
        ("digits", ["optim.weight_decay=.nan"], "optim.weight_decay: Input should be a finite number, not nan"),
        ("digits", ["optim.lr=inf"], "finite"),
        ("digits", ["data.mean=[.nan,0,0]"], "Input should be a finite number"),
        ("digits", ["train.warmup_epochs=.inf"], "finite"),
        ("detect_digits", ["model.anchor_scale=.inf"], "model.anchor_scale must be"),
        ("digits", ["model.drop_path=.nan"], "finite"),
        ("digits", ["optim.betas=[1.5,0.9]"], "optim.betas must be at least 0 and below 1, not [1.5, 0.9]"),
        ("digits", ["optim.betas=[0.9,1]"], "optim.betas"),
        ("digits", ["optim.betas=[-0.1,0.9]"], "optim.betas"),
        ("digits", ["data.std=[0,0,0]"], "data.std must be above 0"),
        ("digits", ["data.std=[0.2,-0.2,0.2]"], "data.std must be above 0"),
        ("digits", ["augment.crop_scale=[0.9,0.1]"], "augment.crop_scale must be two fractions"),
        ("digits", ["augment.crop_scale=[-0.1,1]"], "augment.crop_scale"),
        ("digits", ["augment.crop_scale=[0,0]"], "augment.crop_scale"),
        ("digits", ["augment.crop_aspect=[2,1]"], "augment.crop_aspect must be two numbers above 0"),
        ("digits", ["augment.crop_aspect=[0,1]"], "augment.crop_aspect"),
        ("segment_digits", ["segment.ratio_range=[2,1]"], "segment.ratio_range must be"),
        ("segment_digits", ["segment.ratio_range=[-1,1]"], "segment.ratio_range must be"),
        ("segment_digits", ["segment.scale=[0,0]"], "segment.scale must be numbers of pixels"),
        ("segment_digits", ["segment.window=96"], "segment.window=96 with segment.stride=null: give both or neither"),
        ("segment_digits", ["segment.window=96", "segment.stride=97"], "lower it"),
        ("detect_digits", ["detect.short=[]"], "detect.short must be numbers of pixels above 0, not []"),
        ("detect_digits", ["detect.crop=[200,100]"], "detect.crop must be two numbers"),
        ("digits", ["augment.mixup=0.8", "train.batch_size=5"], "train.batch_size must be even, because mixup and CutMix"),
        ("digits", ["augment.cutmix=1", "train.device_batch_size=3"], "train.device_batch_size must be even, because mixup and CutMix"),
        ("digits", ["optim.schedule=step"], "optim.schedule=step needs the epochs after which the rate falls: add optim.milestones=[8,11]"),
        ("digits", ["optim.schedule=step", "optim.milestones=[11,8]"], "in increasing order, not [11.0, 8.0]"),
        ("digits", ["optim.schedule=step", "optim.milestones=[8,8]"], "in increasing order"),
        ("digits", ["optim.schedule=step", "optim.milestones=[0,8]"], "above 0"),
        ("digits", ["optim.lr=1e-7"], "optim.min_lr=1e-06 is above optim.lr=1e-07: the rate would rise; add optim.min_lr=0"),
        ("digits", ["train.warmup_steps=20", "train.iterations=10"], "train.warmup_steps=20 is longer than train.iterations=10"),
    ],
)
def test_values_that_make_no_sense_are_refused(recipe, overrides, message):
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe, overrides)
    assert message in str(caught.value)


def test_a_warm_up_is_compared_with_the_run_once_its_steps_are_known():
    recipe = load_recipe("digits", ["train.epochs=10", "train.warmup_steps=31"])
    with pytest.raises(
        UsageError, match="train.warmup_steps=31 is longer than the run: the warm-up takes 31 steps of 30.*add train.warmup_steps=6"
    ):
        check_warmup(recipe, 3, 30)
    check_warmup(recipe, 4, 40)
    with pytest.raises(UsageError, match="train.warmup_epochs=4 is longer than the run: the warm-up takes 40 steps of 30"):
        check_warmup(load_recipe("digits", ["train.iterations=30"]), 10, 30)


def test_a_recipe_that_a_run_wrote_is_read_whatever_its_keys(tmp_path):
    """Earlier versions refused less."""
    values = load_recipe("digits").model_dump() | {"detect": {"longest": 7}}
    path = tmp_path / "recipe.yaml"
    path.write_text(Recipe.model_validate(values).to_yaml())
    assert load_recipe(str(path), written=True).detect.longest == 7
    with pytest.raises(UsageError, match="detect.longest=7 has no effect"):
        load_recipe(str(path))


def test_a_warm_up_is_shortened_to_its_share_of_the_run():
    recipe = load_recipe("detect_finetune", {"data.train": "photos"})
    assert check_warmup(recipe, 5, 120) == ["the warm-up takes 24 of the run's 120 steps instead of 200 (train.warmup_share=0.2)"]
    assert warmup_steps(recipe, 5, 120) == 24
    assert check_warmup(recipe, 5, 1000) == []
    assert warmup_steps(recipe, 5, 1000) == 200
    load_recipe("digits", ["train.epochs=2", "train.warmup_share=0.1"])  # whose 20 epochs of warm-up are longer than the run


@pytest.mark.parametrize("override", ["train.iterations=auto", "model.anchor_scale=auto", "detect.size=auto"])
def test_a_value_that_the_task_does_not_measure_is_refused(override):
    with pytest.raises(UsageError):
        load_recipe("digits", [override])


def test_detect_size_replaces_the_other_sizes():
    assert load_recipe("detect_digits", ["detect.size=96"]).detect.test_short == 800  # the recipe's 128 would have no effect
    with pytest.raises(UsageError, match=r"detect.test_short=64 has no effect: detect.size replaces it"):
        load_recipe("detect_digits", ["detect.size=96", "detect.test_short=64"])


def test_the_size_of_other_tasks_names_the_detectors_own():
    with pytest.raises(UsageError, match=r"data.image_size=640 has no effect: .* \(set detect.size instead\)"):
        load_recipe("detect_finetune", ["data.train=photos", "data.image_size=640"])


@pytest.mark.parametrize(("name", "has", "lacks"), [("digits", "crop_scale", "test_short"), ("detect_digits", "test_short", "crop_scale")])
def test_a_report_shows_the_keys_that_the_task_uses(name, has, lacks):
    recipe = load_recipe(name)
    text = recipe.to_yaml(partial(is_used, recipe))
    assert f"{has}:" in text
    assert f"{lacks}:" not in text
    assert "segment:" not in text  # a section of which no key is left
    assert "epochs:" in text
    assert "task:" in text
    assert f"{lacks}:" in recipe.to_yaml()
