"""Recipes as text: what is taken as written, YAML that is not, keys that are given twice."""

import json

import pytest

from convnext.errors import ConvnextError, UsageError
from convnext.recipe import load_recipe
from convnext.recipe.text import text_keys

TEXTS = [
    "*.tar",
    "2024",
    "0123",
    "1e-3",
    "photos #1",
    "@photos",
    "nan",
    "true",
    "no",
    "null",
    "2024-01-31",
    "2024-13-45",
    "C:\\photos",
    "[a]/b",
]
TEXTS += ["%x", "{a,b}", "a: b", "- a", "&a", "!x", "x-{000..007}.tar", "`a`", "'n' 'm'", "a=b", " a ", "ä\udce9", "~"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_is_written(text, tmp_path):
    assert load_recipe("digits", [f"data.train={text}"]).data.train == text
    assert load_recipe("digits", [f"model.weights=x{text}"]).model.weights == f"x{text}"
    recipe = load_recipe("digits", {"data.train": text})
    if text.isprintable():
        (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_the_texts_of_the_schema_are_known():
    found = text_keys()
    assert {key for key, may_be_null in found.items() if not may_be_null} == {"task", "model.name", "data.train"}
    assert {"model.weights", "data.val", "data.fold", "augment.rand_augment", "train.loss", "eval.best_by"} <= found.keys()
    assert not {"data.image_size", "optim.name", "optim.lr", "train.class_weights"} & found.keys()


def test_optional_texts_may_be_null():
    for value in ("null", "", "~"):
        recipe = load_recipe("digits", [f"augment.rand_augment={value}", f"data.val={value}"])
        assert (recipe.augment.rand_augment, recipe.data.val) == (None, None)


def test_a_text_in_quotes_is_what_they_hold():
    """Programs write values as JSON."""
    for text in ("photos", "2024", "null", 'a "b" c', "ä #1", ""):
        assert load_recipe("digits", [f"data.train={json.dumps(text)}", f"data.val={json.dumps(text)}"]).data.val == text
    assert load_recipe("digits", ['model.name="convnext_femto"']).model.name == "convnext_femto"
    assert load_recipe("digits", ["data.train='it''s'"]).data.train == "it's"


@pytest.mark.parametrize("value", ["[1,2", "{a", "'", '"', "@x", "%x", "a: b: c", "2024-13-45", "!!python/object:os.system x", "[" * 2000])
def test_other_values_that_are_no_yaml_are_reported(value):
    with pytest.raises(UsageError, match="override model.depths: .* is not a YAML value; quote it, or close its brackets"):
        load_recipe("digits", [f"model.depths={value}"])


@pytest.mark.parametrize("text", ["2024", "0x10", "1e3", "2024-01-31", "2024-13-45", "no", "1_000", "12:30:45"])
def test_texts_in_a_file_are_taken_as_they_are_written(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"data:\n  train: {text}   # a comment\n  val: {text}\nmodel: {{name: convnext_atto}}\n")
    data = load_recipe(str(path)).data
    assert (data.train, data.val) == (text, text)
    path.write_text(f"data: {{train: {text}, val: null}}\n")
    assert (load_recipe(str(path)).data.train, load_recipe(str(path)).data.val) == (text, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: 1.0e-3}\ndata: {train: a}\noptim: {weight_decay: 0.1}\n", "key 'optim' is given twice, in lines 1 and 3: keep one"),
        ("data: {train: a}\noptim:\n  lr: 1.0e-3\n  eps: 1\n  lr: 2.0e-3\n", "key 'optim.lr' is given twice, in lines 3 and 5"),
        ("data: {train: a, train: b}\n", "key 'data.train' is given twice, in lines 1 and 1"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"mine\.yaml: {message}"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_anchors_and_merged_tables_still_work(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "data: {train: &where 2024, val: *where}\noptim: &more {lr: 1.0e-3}\ntrain: {<<: {epochs: 30}, ema: 0.9}\n"
    )
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.data.train, recipe.data.val, recipe.train.epochs, recipe.train.ema) == ("2024", "2024", 30, 0.9)


def test_a_section_may_be_left_empty(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {train: a}\nmodel:\ntrain:\naugment:\n")
    assert load_recipe(str(path), ["train.epochs=40", "model.name=convnext_atto"]).train.epochs == 40
    assert load_recipe(str(path)) == load_recipe(str(path), {"train.epochs": 300})
    path.write_text("data:\n")
    with pytest.raises(UsageError, match=r"data\.train: Field required"):
        load_recipe(str(path))
    path.write_text("")
    with pytest.raises(UsageError, match=r"data\.train: Field required"):
        load_recipe(str(path))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_of_another_encoding_is_reported(encoding, tmp_path):
    (tmp_path / "mine.yaml").write_bytes("data: {train: für}\n".encode(encoding))
    with pytest.raises(ConvnextError, match=r"mine\.yaml is not UTF-8 .*: save it as UTF-8"):
        load_recipe(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_bytes("data: {train: für}\n".encode("utf-8-sig"))
    assert load_recipe(str(tmp_path / "mine.yaml")).data.train == "für"


@pytest.mark.parametrize(
    "text", ["data: [", "a: b: c", "\t- x", "data: {train: a}\n---\ndata: {train: b}\n", "seed: 2024-13-45\ndata: {train: a}", "a: *b"]
)
def test_what_is_no_yaml_is_reported_with_the_files_name(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"mine\.yaml is not valid YAML"):
        load_recipe(str(tmp_path / "mine.yaml"))
