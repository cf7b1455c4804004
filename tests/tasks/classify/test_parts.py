"""Which images a recipe trains a classifier on, and which it is evaluated on."""

import re

import pytest
from command import run
from helpers import image_folder

from convnext.errors import ConvnextError, UsageError
from convnext.recipe import load_recipe
from convnext.tasks.classify.task import ClassifyTask

TINY = ["model.depths=[1,1,1,1]", "model.widths=[8,8,8,8]", "data.image_size=32", "train.epochs=1", "train.batch_size=8", "data.workers=0"]


def table(root, each=8, classes=("ant", "bee"), split=None, patients=None):
    """`labels.csv` beside the folder `photos`; `split` and `patients` map a path to a cell."""
    image_folder(root / "photos", classes, each)
    extra = [(name, of) for name, of in (("split", split), ("patient", patients)) if of is not None]
    lines = [",".join(["file", "species", *(name for name, _ in extra)])]
    for path in sorted((root / "photos").rglob("*.jpg")):
        below = str(path.relative_to(root / "photos"))
        lines.append(",".join([f"photos/{below}", path.parent.name, *(of(below) for _, of in extra)]))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "labels.csv"


def opened(*overrides):
    data = ClassifyTask().open(load_recipe("finetune", [f"data.{text}" for text in overrides]))
    return data, [{source.key(i) for i in range(len(source))} for source in (data.train.source, data.val.source)]


def test_a_table_is_named_by_keys_or_by_options_and_held_out_as_a_folder_is(tmp_path):
    where = table(tmp_path)
    data, (train, val) = opened(f"train={where}", "label_column=species")
    assert data.classes == ["ant", "bee"]
    assert data.remarks[0] == "train: 16 images, 2 classes: ant 8, bee 8"
    assert "train: columns: file names the images, species their labels" in data.remarks
    assert data.remarks[-1] == f"no data.val given: {len(val)} of the 16 images are held out for validation"
    assert opened(f"train={where}:label=species")[1] == [train, val]
    assert opened(f"train={where}:label=species", "label_column=nothing")[1] == [train, val]
    with pytest.raises(UsageError, match="data.label_column is of tables"):
        opened(f"train={tmp_path}/photos", "label_column=species")
    with pytest.raises(UsageError, match="data.image_column=photo: .*labels.csv has no such column"):
        opened(f"train={where}", "label_column=species", "image_column=photo")


def test_a_table_and_a_folder_hold_out_the_same_images_where_paths_are_the_same(tmp_path):
    where = table(tmp_path)
    in_folder = opened(f"train={tmp_path}/photos")[1]
    where.write_text(where.read_text().replace("photos/", ""))
    assert opened(f"train={where}:label=species", f"root={tmp_path}/photos")[1] == in_folder


def test_the_column_split_names_the_parts(tmp_path):
    where = table(tmp_path, split=lambda path: {"0": "train", "1": "train", "2": "val"}.get(path[-5], "test"))
    data, (train, val) = opened(f"train={where}", "label_column=species")
    assert len(train) == 4
    assert val == {"photos/ant/002.jpg", "photos/bee/002.jpg"}
    assert "by the column split, 4 images are for training and 2 (val) for validation; 10 of test are not used" in data.remarks
    data, (train, val) = opened(f"train={where}:split=train", f"val={where}:split=test", "label_column=species")
    assert (len(train), len(val)) == (4, 10)
    data, (train, val) = opened(f"train={where}", f"val={where}", "label_column=species")
    assert "16 of the 16 validation images are trained on too, the first" in data.remarks[-1]


def test_a_column_split_with_one_part_alone_holds_images_out_as_without_it(tmp_path):
    where = table(tmp_path, split=lambda path: "train")
    data, (_, val) = opened(f"train={where}", "label_column=species")
    assert data.remarks[-1] == f"no data.val given: {len(val)} of the 16 images are held out for validation"


def test_keys_of_tables_are_for_either_part(tmp_path):
    where = table(tmp_path)
    data, (train, val) = opened(f"train={tmp_path}/photos", f"val={where}", "label_column=species")
    assert (len(train), len(val)) == (16, 16)
    assert "16 of the 16 validation images are trained on too" in data.remarks[-1]
    with pytest.raises(UsageError, match="data.root is of tables"):
        opened(f"train={tmp_path}/photos", f"val={tmp_path}/photos", "root=x")


def test_missing_files_stop_a_run_before_it_begins(tmp_path):
    where = table(tmp_path)
    (tmp_path / "photos" / "bee" / "003.jpg").unlink()
    with pytest.raises(ConvnextError, match=r"1 of 16 images is missing, more than 1.0% \(data.max_corrupt\): .*photos/bee/003.jpg"):
        opened(f"train={where}", "label_column=species")
    data, _ = opened(f"train={where}", "label_column=species", "max_corrupt=0.1")
    assert "train: 1 of 16 images of the table can't be found, the first photos/bee/003.jpg" in data.remarks


def test_a_run_on_a_table_and_its_evaluation(tmp_path):
    where = table(tmp_path)
    keys = [f"data.train={where}", "data.label_column=species", "model.weights=null", "train.warmup_epochs=0"]
    run("train", "finetune", *keys, *TINY, "--output", tmp_path / "run")
    results = [run("eval", tmp_path / "run", "--data", name).stdout for name in (where, f"{where}:label=species")]
    assert "of 16)" in results[0]
    assert results[0] == results[1]
    checked = run("data", "check", f"{where}:label=species").stdout.splitlines()
    assert checked[0] == "16 images, 2 classes: ant 8, bee 8"
    assert checked[-1] == f"nothing wrong with {where}:label=species"
    assert "no table nowhere.csv" in run("data", "check", "nowhere.csv", code=2).stderr


def test_a_group_is_never_in_both_parts(tmp_path):
    where = table(tmp_path, patients=lambda path: f"p{int(path[-5]) // 2}{path[0]}")
    for extra in (
        ["group_column=patient"],
        ["group_column=patient", "fold=2/3"],
        ["group=.../00[0-9]"],
        ["group=(ant|bee)/00(.)", "fold=1/2"],
    ):
        data, (train, val) = opened(f"train={where}", "label_column=species", *extra)
        assert len(train) + len(val) == 16
        if "group_column=patient" in extra:
            patients = [{(key[7:10], int(key[-5]) // 2) for key in part} for part in (train, val)]
            assert patients[0].isdisjoint(patients[1])
        assert any(re.search(rf"{len(val)} of the 16 images \(\d+ of \d+ groups\) are held out", line) for line in data.remarks)
    with pytest.raises(ConvnextError, match="no group can be held out: there are 2, and each class needs one"):
        opened(f"train={where}", "label_column=species", "group=^photos/.")
    with pytest.raises(ConvnextError, match="data.fold=1/9 needs 9 groups, and there are 8"):
        opened(f"train={where}", "label_column=species", "group_column=patient", "fold=1/9")
    with pytest.raises(ConvnextError, match="data.group=zebra fits no image"):
        opened(f"train={where}", "label_column=species", "group=zebra")
    lines = where.read_text().splitlines()
    where.write_text("\n".join([*lines[:2], lines[2].rpartition(",")[0] + ",", *lines[3:]]))
    with pytest.raises(ConvnextError, match="row 3 of .* has no group in the column 'patient'"):
        opened(f"train={where}", "label_column=species", "group_column=patient")


def test_every_image_of_a_folder_is_in_one_fold_and_test_images_in_none(tmp_path):
    where = table(tmp_path, split=lambda path: "test" if path[-5] == "7" else "train")
    parts = [opened(f"train={tmp_path}/photos", f"fold={i}/3")[1] for i in (1, 2, 3)]
    assert sorted(key for _, val in parts for key in val) == sorted(parts[0][0] | parts[0][1])
    assert all(train.isdisjoint(val) and len(train | val) == 16 for train, val in parts)
    data, (train, val) = opened(f"train={where}", "label_column=species", "fold=1/2")
    assert (len(train), len(val)) == (7, 7)
    assert data.remarks[-2:] == [
        "by the column split, 2 images of test are in no fold",
        "data.fold=1/2: 7 of the 14 images are held out for validation",
    ]
    table(tmp_path / "rare", each=1, classes=("ant",))
    image_folder(tmp_path / "rare" / "photos", ("bee",), 6)
    assert [opened(f"train={tmp_path}/rare/photos", f"fold={i}/3")[0].remarks[-1] for i in (1, 2, 3)].count(
        "no images to train on of 1 class: ant"
    ) == 1


def test_a_group_that_the_column_split_divides_is_refused(tmp_path):
    where = table(tmp_path, split=lambda path: "val" if path[-5] in "01" else "train", patients=lambda path: f"p{int(path[-5]) // 3}")
    with pytest.raises(ConvnextError, match="the column split divides 1 group between train and val, the first p0"):
        opened(f"train={where}", "label_column=species", "group_column=patient")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fold=2/5", "val=x"], "data.fold chooses validation images from data.train, so data.val can't be given too"),
        (["group_column=a", "val=x"], "data.group_column chooses"),
        (["group=a", "group_column=a"], "data.group and data.group_column both name the groups"),
        (["group=(", "val=null"], "data.group: not a regular expression"),
        *[([f"fold={value}"], "data.fold: write it as 2/5") for value in ("0/5", "6/5", "1/1", "2 of 5", "-1/5", "1/5/5")],
    ],
)
def test_contradictions_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("finetune", ["data.train=photos", *(f"data.{text}" for text in overrides)])


def test_a_fold_is_text_in_yaml_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("data:\n  train: photos\n  fold: 2/5\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).data.fold_of() == (2, 5)
    recipe = load_recipe("finetune", ["data.train=photos", "data.fold=3/10"])
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe
