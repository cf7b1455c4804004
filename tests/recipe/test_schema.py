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
        (["lr=1"], "unknown key 'lr'; did you mean 'optim.lr'?"),
        (["train.lr=1"], "unknown key 'train.lr'; did you mean 'optim.lr'?"),
        (["trian.epochs=1"], "did you mean 'train.epochs'?"),
        (["nonsense=1"], "`convnext recipes keys` lists them all"),
        (["train.epochs"], "is not an override; write it as key=value"),
        (["train.epochs=0"], "train.epochs: Input should be greater than or equal to 1, not 0"),
        (["train.epochs=many"], "train.epochs: Input should be a valid integer"),
        (["eval.interpolation=cubic"], "eval.interpolation: Input should be 'nearest', 'bilinear' or 'bicubic', not 'cubic'"),
        (["augment.mixup=1", "train.batch_size=5"], "train.batch_size must be even"),
        (["train.epochs=1"], "train.warmup_epochs=4 is longer than train.epochs=1: add train.warmup_epochs=0.2"),
        (["model.nmae=x"], "unknown key 'model.nmae'; did you mean 'model.name'?"),
        (["model.name=convnext_tny"], "convnext_tiny"),
        (["model.masks=true"], "unknown key 'model.masks'"),
        (["train.epochs=[1"], "override train.epochs: '[1' is not a YAML value"),
        (["train=4"], "unknown key 'train'"),
        (["train.epochs.more=4"], "unknown key 'train.epochs.more'"),
    ],
)
def test_a_mistake_is_reported(overrides, message):
    with pytest.raises(UsageError) as caught:
        load_recipe("digits", overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optm: {lr: 1}", r"unknown key 'optm.lr'; did you mean 'optim.lr'"),
        ("seed: 1", r"data\.train: Field required \(give it as data\.train=…\)"),
        ("- a", "must be a table of keys"),
        ("a: [", "not valid YAML"),
        ("", "data.train"),
    ],
)
def test_mistakes_in_a_file_are_reported_with_its_name(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"mine\.yaml.*{message}"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_unknown_recipes_suggest_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="unknown recipe 'digit'; did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(UsageError, match=r"no recipe file .*mine\.yaml"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_every_key_has_a_description():
    assert all(description for key, description in keys().items() if key != "task")
    assert len(keys()) > 30


def test_epochs_as_an_override_replace_a_recipes_iterations():
    assert load_recipe("segment_digits").train.iterations
    changed = load_recipe("segment_digits", ["train.epochs=2"]).train
    assert (changed.epochs, changed.iterations) == (2, None)
    both = load_recipe("segment_digits", ["train.epochs=2", "train.iterations=500"]).train
    assert both.iterations == 500


# Keys of the model


def test_every_argument_of_the_model_is_a_key():
    recipe = load_recipe("detect_digits", ["model.proposals=20", "model.masks=false", "model.anchor_scale=4"])
    assert (recipe.model.get("proposals"), recipe.model.get("masks"), recipe.model.get("fc_channels_")) == (20, False, None)
    assert recipe.model.arguments()["anchor_scale"] == 4
    assert "proposals: 20" in recipe.to_yaml()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.proposals=many"], "model.proposals must be int"),
        (["model.proposal=20"], "unknown key 'model.proposal'; did you mean 'model.proposals'?"),
        (["model.auxiliary_channels=20"], "unknown key 'model.auxiliary_channels'"),
        (["model.num_classes=20"], "unknown key 'model.num_classes'; did you mean 'data.num_classes'?"),
        (["model.head_init_scale=0.1"], "has no argument 'head_init_scale'"),
    ],
)
def test_keys_of_the_model_are_checked_against_its_constructors(overrides, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        load_recipe("detect_digits", overrides)


def test_what_the_constructors_do_not_take_is_not_passed_at_its_default():
    for name in ("mask_rcnn_convnext_atto", "resnet50", "convnext_atto"):
        arguments = load_recipe("digits").model.model_copy(update={"name": name, "layer_scale": None}).arguments()
        assert "head_init_scale" not in arguments
        assert "name" not in arguments


def test_none_is_understood_as_no_weights():
    assert load_recipe("finetune", ["model.weights=none", "data.train=photos"]).model.weights is None


def test_a_recipe_that_an_earlier_version_wrote_is_read(tmp_path):
    """It wrote the keys of every model, null where the model had none."""
    old = load_recipe("digits").to_yaml().replace("model:\n", "model:\n  masks: null\n  width: null\n  proposals: null\n")
    assert old.count("null") >= 3
    (tmp_path / "recipe.yaml").write_text(old)
    assert load_recipe(str(tmp_path / "recipe.yaml")) == load_recipe("digits")


def test_a_key_of_another_model_may_be_null_and_a_misspelt_one_not():
    assert load_recipe("segment_digits", {"model.name": "upernet_convnext_atto", "model.width": None}).model.get("width") is None
    assert load_recipe("digits", ["model.width=null"]) == load_recipe("digits")
    with pytest.raises(UsageError, match="unknown key 'model.wdith'"):
        load_recipe("digits", ["model.wdith=null"])


def test_the_image_size_is_one_number_or_two():
    assert load_recipe("digits", ["data.image_size=[48,80]"]).data.image_size == (48, 80)
    assert load_recipe("digits", ["data.image_size=[48,48]"]) == load_recipe("digits", ["data.image_size=48"])
    for size in ("0", "[48]", "[48,0]", "[48,5000]", "wide", "true", "[48,80,3]", "48.5"):
        with pytest.raises(UsageError, match=r"data.image_size: give pixels a side, from 1 to 4096, or \[height, width\], not "):
            load_recipe("digits", [f"data.image_size={size}"])


def test_a_rectangle_survives_the_recipe_of_a_run_folder(tmp_path):
    recipe = load_recipe("digits", ["data.image_size=[48,80]", "eval.letterbox=true", "augment.crop=none"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_classes_are_a_list_or_unite_categories():
    def classes(text):
        return load_recipe("detect_digits", [f"data.classes={text}"]).data.united_classes()

    assert load_recipe("detect_digits").data.united_classes() == {}
    assert classes("[car, 3]") == {"car": ("car",), "3": ("3",)}
    assert classes("{vehicle: [car, bus], person: person}") == {"vehicle": ("car", "bus"), "person": ("person",)}
    for text in ("[]", "car", "[no]", "{vehicle: [car, '']}"):
        with pytest.raises(UsageError, match="data.classes"):
            classes(text)
