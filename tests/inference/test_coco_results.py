"""COCO's results fit the annotation file they are compared with, in every id; or are refused before anything is predicted."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
import torch
from helpers import sample_image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_models import CLASSES, detector

import convnext
from convnext import tasks
from convnext.data.annotations.coco_file import CocoIds, read_ids
from convnext.errors import UsageError
from convnext.evaluate import evaluate_loaded
from convnext.export.export import export
from convnext.export.load import load
from convnext.inference.bulk import predict_all
from convnext.inference.coco_results import category_ids, image_ids
from convnext.inference.inputs import find_items
from convnext.inference.outputs import open_output

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own

CATEGORIES = {"wasp": 0, "ant": 7, "bee": 3}


def listing(*paths, categories=CATEGORIES):
    """The ids of a file that lists those images, from 11 on."""
    return CocoIds("ann.json", [(path, key) for key, path in enumerate(paths, 11)], categories)


def annotated(root, predictor, names, ids):
    """Images, and a COCO file in which the objects are what a network finds there, a little moved."""
    root.mkdir(exist_ok=True)
    content = {"images": [], "annotations": [], "categories": [{"id": key, "name": name} for name, key in CATEGORIES.items()]}
    rng = np.random.default_rng(0)
    for i, (name, key) in enumerate(zip(names, ids, strict=True)):
        sample_image(i, (80, 60)).save(root / name)
        content["images"].append({"id": key, "file_name": name, "width": 80, "height": 60})
        for one in predictor(root / name).to_json()["objects"][:6]:
            left, top, right, bottom = one["box"]
            if right - left < 4 or bottom - top < 4:
                continue
            x, y = (max(0.0, edge + float(rng.normal(0, 0.6))) for edge in (left, top))
            outline = [[x, y, right, y, right, bottom, x, bottom]]
            about = {"id": len(content["annotations"]) + 1, "image_id": key, "category_id": CATEGORIES[one["class"]], "iscrowd": 0}
            about |= {"bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y), "segmentation": outline}
            content["annotations"].append(about)
    (root / "ann.json").write_text(json.dumps(content))
    return root / "ann.json"


def precisions(truth, results, kind):
    """AP, AP50, AP75 in percent by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(truth))
        # With a box beside the mask, pycocotools takes the box's area for the mask's.
        rows = [{key: value for key, value in row.items() if kind == "bbox" or key != "bbox"} for row in results]
        evaluation = COCOeval(reference, reference.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return (100 * evaluation.stats[:3]).tolist()


def written(model, folder, output, annotations=None):
    predictor, items = convnext.load(model, device="cpu"), find_items([str(folder)])
    items = [item for item in items if not item.name.endswith(".json")]
    predict_all(predictor, items, [open_output(output, None, predictor, items, None, False, annotations=annotations)])
    return json.loads(output.read_text())


def test_results_of_eval_and_predict_have_the_ids_of_the_file_and_give_its_ap(tmp_path):
    model = detector(tmp_path)[0]
    names = [f"{i}.png" for i in range(1, 13)]
    ids = [sorted(names).index(name) + 1 for name in names]  # as many tools number them: 1, 10, 11, 12, 2 …
    truth = annotated(tmp_path / "img", convnext.load(model, device="cpu"), names, ids)
    found = evaluate_loaded(load(model), f"coco:{truth}:{tmp_path / 'img'}", None, 0, 0.0, torch.device("cpu"), with_results=True).result
    assert 1 < found.metrics["box_ap"] < 100
    assert {row["category_id"] for row in found.results} <= set(CATEGORIES.values())
    results = json.loads(json.dumps(found.results))
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        wanted = [found.metrics[f"{name}_ap{threshold}"] for threshold in ("", "50", "75")]
        assert precisions(truth, results, kind) == pytest.approx(wanted, abs=1e-6)
    rows = written(model, tmp_path / "img", tmp_path / "found.json", truth)
    assert {row["image_id"] for row in rows} == set(ids)
    assert precisions(truth, rows, "bbox") == pytest.approx([found.metrics[f"box_ap{at}"] for at in ("", "50", "75")], abs=1)  # rounded


@pytest.mark.parametrize("exported", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_detector_of_boxes_alone_writes_results_without_masks(tmp_path, exported):
    model = detector(tmp_path, class_ids=[7, 3, 0], masks=False)[0]
    if exported:
        pytest.importorskip("onnxruntime")
        export(model, "onnx", tmp_path / "box.onnx")
        model = tmp_path / "box.onnx"
    (tmp_path / "img").mkdir()
    for i in (3, 5):
        sample_image(i, (80, 60)).save(tmp_path / "img" / f"{i:012d}.png")
    rows = written(model, tmp_path / "img", tmp_path / "found.json")
    assert len(rows) > 4
    assert {row["image_id"] for row in rows} == {3, 5}
    assert {row["category_id"] for row in rows} <= {7, 3, 0}
    assert all(row.keys() == {"image_id", "category_id", "bbox", "score"} for row in rows)
    prediction = convnext.load(model, device="cpu")(tmp_path / "img" / f"{3:012d}.png")
    numbers = dict(zip(CLASSES, [7, 3, 0], strict=True))
    assert [row["category_id"] for row in rows if row["image_id"] == 3] == [
        numbers[one["class"]] for one in prediction.to_json()["objects"]
    ]


def test_two_images_of_one_id_are_refused_before_anything_is_predicted(tmp_path):
    predictor = convnext.load(detector(tmp_path)[0], device="cpu")
    for folder in ("a", "b"):
        (tmp_path / "two" / folder).mkdir(parents=True)
        sample_image(0).save(tmp_path / "two" / folder / "000.png")
    items = find_items([str(tmp_path / "two")])
    with pytest.raises(UsageError, match=r"a/000\.png and .*b/000\.png would both be image 0: .*--annotations FILE"):
        open_output(tmp_path / "x.json", None, predictor, items, None, False)
    assert not list(tmp_path.glob("x.*"))
    # Nor by two calls, of which the second resumes the file of the first.
    first, second = items
    predict_all(predictor, [first], [open_output(tmp_path / "x.json", None, predictor, [first], None, False)])
    with pytest.raises(UsageError, match="would both be image 0"):
        open_output(tmp_path / "x.json", None, predictor, [second], None, False)


def test_what_names_say_without_an_annotation_file():
    names = ["a/000000000139.jpg", "COCO_val2014_000000000042.jpg", "007.png", "b\\photo.png"]
    assert list(image_ids(names, None).values()) == [139, 42, 7, "photo"]
    for clash in (["139.png", "000000000139.jpg"], ["7.png", "007.jpg"], ["a/photo.png", "b/photo.jpg"]):
        with pytest.raises(UsageError, match="would both be image"):
            image_ids(clash, None)


@pytest.mark.parametrize(
    ("listed", "names", "wanted"),
    [
        (["1.png", "2.png"], ["img/2.png", "img/1.png"], [12, 11]),
        (["train/1.png", "val/1.png"], ["data/val/1.png", "data/train/1.png"], [12, 11]),
        (["a/1.png", "1.png"], ["x/1.png", "x/a/1.png"], [12, 11]),
        (["img\\1.png", "C:\\u\\2.png"], ["img/1.png", "other/2.png"], [11, 12]),
        (["./1.png", "/home/me/2.png"], ["1.png", "2.png"], [11, 12]),
        (["1.png"], ["shards/x-000.tar/deep/1.png"], [11]),
        (["caf\u00e9.png"], ["cafe\u0301.png"], [11]),
    ],
)
def test_images_are_found_in_an_annotation_file_by_path_or_base_name(listed, names, wanted):
    assert list(image_ids(names, listing(*listed)).values()) == wanted


@pytest.mark.parametrize(
    ("listed", "names", "message"),
    [
        (["1.png"], ["1.png", "x/2.png", "3.png"], r"ann\.json does not list x/2\.png, 3\.png"),
        (["1.png"], ["1.jpg"], "does not list 1.jpg"),
        (["a/1.png", "b/1.png"], ["c/1.png"], "c/1.png could be any of 2 images of that name"),
        (["1.png"], ["a/1.png", "b/1.png"], "a/1.png and b/1.png would both be image 11: predict each into its own file"),
    ],
)
def test_images_that_are_not_sure_to_be_in_an_annotation_file_are_refused(listed, names, message):
    with pytest.raises(UsageError, match=message):
        image_ids(names, listing(*listed))


def test_categories_are_the_files_or_those_of_the_weights_or_places():
    assert category_ids(CLASSES, [4, 5, 6], listing()) == {"ant": 7, "bee": 3, "wasp": 0}
    assert category_ids(CLASSES, [4, 5, 0], None) == {"ant": 4, "bee": 5, "wasp": 0}
    assert category_ids(CLASSES, None, None) == {"ant": 1, "bee": 2, "wasp": 3}
    with pytest.raises(UsageError, match=r"has no category 'bee'; did you mean 'bees'"):
        category_ids(CLASSES, None, listing(categories={"ant": 1, "bees": 2, "wasp": 3}))


def test_a_list_of_images_to_test_on_needs_no_annotations(tmp_path):
    content = {"images": [{"id": 5, "file_name": "1.png"}], "categories": [{"id": 0, "name": "ant"}]}
    (tmp_path / "info.json").write_text(json.dumps(content))
    assert read_ids(tmp_path / "info.json").images == [("1.png", 5)]
    with pytest.raises(UsageError, match="no annotation file"):
        read_ids(tmp_path / "nowhere.json")


def test_annotations_are_for_coco_results_alone(tmp_path):
    predictor = convnext.load(detector(tmp_path)[0], device="cpu")
    with pytest.raises(UsageError, match="--annotations is for COCO's results"):
        open_output(tmp_path / "x.jsonl", None, predictor, [], None, False, annotations=tmp_path / "ann.json")
    assert sorted(os.listdir(tmp_path)) == ["detect.safetensors"]


def test_published_coco_weights_have_cocos_ids(tmp_path):
    task = tasks.get("detect")
    class_ids = task.class_ids
    assert class_ids(None, 80) == class_ids(task.class_names(80), 80)
    assert (class_ids(None, 80)[0], class_ids(None, 80)[-1]) == (1, 90)
    assert class_ids(CLASSES, 3) is None
