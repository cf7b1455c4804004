"""The parts of a detector's data: images held out, objects chosen by keys, and data that are refused before the run."""

import json
from pathlib import Path

import pytest
from helpers import sample_image

from convnext import tasks
from convnext.data.sources.coco import CocoSource
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import load_recipe
from convnext.tasks.detect.parts import open_parts, require_masks

SQUARE = [[10, 10, 30, 10, 30, 25, 10, 25]]
NAMES = ("car", "bus", "person")


def dataset(root, labels, name="a.json", folder="images", **changes):
    """A COCO file of one image for each of `labels`, lists of categories; its name."""
    (root / folder).mkdir(exist_ok=True)
    images, annotations = [], []
    for i, own in enumerate(labels):
        path = root / folder / f"{'ab'[i % 2]}{i:03d}.png"
        if not path.exists():
            sample_image(0, (48, 40)).save(path)
        images.append({"id": i, "file_name": path.name, "width": 48, "height": 40})
        for label in own:
            one = {"id": len(annotations), "image_id": i, "category_id": label, "bbox": [10, 10, 20, 15], "segmentation": SQUARE}
            annotations.append(one | changes)
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    (root / name).write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return f"coco:{root / name}:{root / folder}"


def parts(where, *overrides, val="null"):
    recipe = load_recipe("detect_digits", [f"data.train={where}", f"data.val={val}", *overrides])
    train, held, remarks = open_parts(recipe, lambda source: [*source.remarks])
    require_masks(recipe, train, held)
    return train, held, remarks


def keys(source):
    return [source.key(index) for index in range(len(source))]


def test_images_are_held_out_by_their_names(tmp_path):
    labels = [[0, 2], [1], [0], [], [2, 0], []] * 20
    where = dataset(tmp_path, labels)
    train, val, remarks = parts(where)
    assert 12 <= len(val) <= 36
    assert remarks[0] == f"no data.val given: {len(val)} of the 120 images are held out for validation"
    empty = remarks[1].removeprefix("train: skipped ").partition(" images without objects (data.keep_empty=true trains on them)")
    assert int(empty[0]) == 120 - len(train) - len(val) > 20
    assert sum(train.objects_by_class()) + sum(val.objects_by_class()) == 120
    assert all(val.objects_by_class())
    # Neither the order of the file nor other images matter.
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"] = content["images"][::-1][10:]
    (tmp_path / "b.json").write_text(json.dumps(content))
    fewer = parts(where.replace("a.json", "b.json"), "data.max_corrupt=1")[1]
    assert set(keys(fewer)) == set(keys(val)) & {image["file_name"] for image in content["images"]}
    assert set(keys(parts(where, "seed=1")[1])) != set(keys(val))
    assert len(parts(where, "data.keep_empty=true")[0]) == 120 - len(val)


def test_a_class_of_few_images_is_in_both_parts(tmp_path):
    train, val, _ = parts(dataset(tmp_path, [[0]] * 30 + [[0, 1], [1]]), "data.val_fraction=0.1")
    assert (train.objects_by_class()[1], val.objects_by_class()[1]) == (1, 1)
    _, val, remarks = parts(dataset(tmp_path, [[0]] * 30 + [[0, 1]]), "data.val_fraction=0.1")
    assert val.objects_by_class()[1] == 0
    assert remarks[-1] == "no objects to validate on of 1 class: bus"


def test_groups_and_folds_are_held_out_whole(tmp_path):
    where = dataset(tmp_path, [[0, 1]] * 20)
    train, val, remarks = parts(where, "data.group=^(..)")
    groups = [{key[:2] for key in keys(part)} for part in (train, val)]
    assert (groups[0] & groups[1], groups[0] | groups[1]) == (set(), {"a0", "b0"})
    assert remarks == ["no data.val given: 10 of the 20 images (1 of 2 groups) are held out for validation", *remarks[1:]]
    held = [keys(parts(where, f"data.fold={fold}/3")[1]) for fold in (1, 2, 3)]
    assert sorted(key for one in held for key in one) == sorted(keys(CocoSource(tmp_path / "a.json", tmp_path / "images")))
    assert [len(one) for one in held] == [7, 7, 6]
    with pytest.raises(ConvnextError, match=r"data\.fold=2/30 needs 30 images, and there are 20"):
        parts(where, "data.fold=2/30")
    with pytest.raises(ConvnextError, match="nothing can be held out of 1 group"):
        parts(where, "data.group=png")


def test_keys_choose_objects_of_both_parts(tmp_path):
    where, val = dataset(tmp_path, [[0, 1], [2], []] * 4), dataset(tmp_path, [[1, 2]], "v.json", "more")
    train, held, remarks = parts(where, "data.classes={vehicle: [car, bus]}", val=val)
    assert (train.classes, train.objects_by_class(), held.objects_by_class()) == (["vehicle"], [8], [1])
    assert len(train) == 4
    assert f"train: {tmp_path}/a.json: dropped 4 objects of other categories than the chosen classes: person 4" in remarks
    crowds = dataset(tmp_path, [[0], [1]], "c.json", iscrowd=1)
    with pytest.raises(ConvnextError, match=r"the 2 images of data\.train hold no object: .*add data\.crowds=objects"):
        parts(crowds)
    assert parts(crowds, "data.crowds=objects", val=val)[0].objects_by_class() == [1, 1, 0]
    boxes = dataset(tmp_path, [[0], [1]], "d.json", segmentation=[])
    with pytest.raises(ConvnextError, match=r"has boxes but no masks: .*model\.masks=false, or .* data\.masks_from_boxes=true"):
        parts(boxes, val=val)
    assert parts(boxes, "data.masks_from_boxes=true", val=val)[0].has_masks
    assert not parts(boxes, "model.masks=false", val=val)[0].has_masks


def test_evaluation_takes_the_choices_of_a_run(tmp_path):
    where = dataset(tmp_path, [[0, 1], [2]])
    recipe = load_recipe("detect_digits", [f"data.train={where}", "data.classes={vehicle: [car, bus]}", "model.masks=false"])
    task = tasks.get("detect")
    named = task.named(where, recipe)
    assert named == f"{where}:classes=vehicle=car+bus:masks=optional"
    assert task.open_labelled(named, ["vehicle"], 1).objects_by_class() == [2]
    where = dataset(tmp_path, [[0, 1]] * 6)
    segmenter = load_recipe("segment_digits", [f"data.train={where}", "data.val=null", "data.classes=[bus]"])
    assert tasks.get("segment").open(segmenter).classes == ["background", "bus"]


def test_keys_of_coco_files_are_refused_for_other_data(tmp_path):
    with pytest.raises(UsageError, match=r"data\.classes is of annotations in COCO's format, .* and scenes:train has none: remove it"):
        parts("scenes:train", "data.classes=[3]", val="scenes:val")
    with pytest.raises(UsageError, match=r"has none: remove it; in classes\.txt, put the names of classes to ignore in parentheses"):
        tasks.get("segment").open(load_recipe("segment_digits", [f"data.train={tmp_path}", "data.classes=[road]"]))


def test_missing_images_stop_a_run_before_it_begins(tmp_path):
    where = dataset(tmp_path, [[0], [1], [2]] * 3)
    file = Path(tmp_path / "a.json")
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "gone.jpg"
    file.write_text(json.dumps(content))
    with pytest.raises(ConvnextError, match=r"1 of 9 images of .*a\.json is missing, more than 1\.0% .*gone\.jpg.*data\.max_corrupt=0\.12"):
        parts(where)
    assert "1 of the 9 images of" in " ".join(parts(where, "data.max_corrupt=0.12")[2])


def test_many_invalid_objects_stop_a_run_and_one_does_not(tmp_path):
    where = dataset(tmp_path, [[0], [1], [2]] * 3)
    file = Path(tmp_path / "a.json")
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]
    file.write_text(json.dumps(content))
    assert "skipped 1 invalid annotation" in parts(where)[2][0]
    content["annotations"][1]["bbox"] = None
    file.write_text(json.dumps(content))
    with pytest.raises(
        ConvnextError,
        match=r"2 of 9 annotations are invalid, more than 1\.0% \(data\.max_corrupt\): .*annotation 0 has a box.*data\.max_corrupt=0\.23 or more",
    ):
        parts(where)
    assert len(parts(where, "data.max_corrupt=0.3")[0]) > 0
    with pytest.raises(ConvnextError, match=r"2 of 9 annotations are invalid"):
        tasks.get("segment").open(load_recipe("segment_digits", [f"data.train={where}", "data.val=null"]))


def test_images_that_are_trained_and_evaluated_on_are_reported(tmp_path):
    where = dataset(tmp_path, [[0], [1]])
    both = f"2 of the 2 validation images are trained on too, the first {tmp_path}/images/a000.png"
    assert parts(where, val=f"{where}/../images")[2] == [both.replace("images/", "images/../images/")]
