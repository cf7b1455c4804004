import pytest

from convnext.errors import UsageError
from convnext.recipe import keys, list_recipes, load_recipe, recipe_text


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_loads_begins_with_a_comment_and_survives_a_round_trip(name, tmp_path):
    recipe = load_recipe(name, {"data.train": "digits:train"})
    assert recipe_text(name).startswith("# ")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_overrides_of_every_kind():
    recipe = load_recipe(
        "digits",
        [
            "optim.lr=1e-3",
            "train.epochs=4",
            "model.weights=fb_in1k",
            "data.val=null",
            "model.depths=[1, 2, 3, 4]",
            "augment.rand_augment=null",
        ],
    )
    assert (recipe.optim.lr, recipe.train.epochs, recipe.model.weights, recipe.data.val) == (0.001, 4, "fb_in1k", None)
    assert recipe.model.depths == (1, 2, 3, 4)
    assert recipe.augment.rand_augment is None
    assert load_recipe("digits", {"optim.lr": 0.001}).optim.lr == 0.001


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr=1"], "no key is called 'lr'; did you mean 'optim.lr'?"),
        (["train.lr=1"], "no key is called 'train.lr'; did you mean 'optim.lr'?"),
        (["trian.epochs=1"], "did you mean 'train.epochs'?"),
        (["nonsense=1"], "`convnext recipes keys` lists them all"),
        (["train.epochs"], "is no override; write it as key=value"),
        (["train.epochs=0"], "train.epochs: Input should be greater than or equal to 1, not 0"),
        (["train.epochs=many"], "train.epochs: Input should be a valid integer"),
        (["eval.interpolation=cubic"], "eval.interpolation: Input should be 'nearest', 'bilinear' or 'bicubic', not 'cubic'"),
        (["augment.mixup=1", "train.batch_size=5"], "train.batch_size must be even"),
        (["train.epochs=1"], "train.warmup_epochs is more than train.epochs"),
        (["train=4"], "no key is called 'train'"),
        (["train.epochs.more=4"], "no key is called 'train.epochs.more'"),
    ],
)
def test_what_is_wrong_is_told(overrides, message):
    with pytest.raises(UsageError) as caught:
        load_recipe("digits", overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optm: {lr: 1}", r"no key is called 'optm.lr'; did you mean 'optim.lr'"),
        ("seed: 1", r"data\.train: Field required \(give it as data\.train=…\)"),
        ("- a", "must be a table of keys"),
        ("a: [", "no valid YAML"),
        ("", "data.train"),
    ],
)
def test_mistakes_in_a_file_are_told_with_its_name(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"mine\.yaml.*{message}"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_unknown_recipes_suggest_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="no recipe is called 'digit'; did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(UsageError, match=r"no recipe file .*mine\.yaml"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_every_key_has_a_description():
    assert all(description for key, description in keys().items() if key != "task")
    assert len(keys()) > 30


def test_epochs_as_an_override_count_in_place_of_a_recipes_iterations():
    assert load_recipe("segment_digits").train.iterations
    changed = load_recipe("segment_digits", ["train.epochs=2"]).train
    assert (changed.epochs, changed.iterations) == (2, None)
    both = load_recipe("segment_digits", ["train.epochs=2", "train.iterations=5"]).train
    assert both.iterations == 5
