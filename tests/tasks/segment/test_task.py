import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import relative_error, sample_image
from PIL import Image
from safetensors.torch import load_file
from service import encoded, running
from tiny_models import CLASSES, segmenter

import convnext
from convnext import tasks
from convnext.data.annotations.mask_files import Coding, coding, read_classes, read_mask
from convnext.errors import ConvnextError, UsageError
from convnext.evaluate import evaluate_loaded
from convnext.inference.bulk import predict_all
from convnext.inference.fingerprint import fingerprint_of
from convnext.inference.inputs import find_items
from convnext.inference.outputs import open_output
from convnext.models.load import load
from convnext.recipe import load_recipe
from convnext.report.palette import class_colour
from convnext.tasks.segment.prediction import SegmentPrediction

TINY = {
    "model.name": "upernet_convnext_atto",
    "model.width": None,
    "model.depths": [1, 1, 1, 1],
    "model.widths": [8, 16, 24, 32],
    "model.channels": 16,
    "model.auxiliary_channels": 8,
    "data.workers": 0,
    "data.image_size": 64,
    "train.epochs": 2,
    "train.warmup_steps": 1,
    "train.batch_size": 4,
    "train.eval_every": 1,
    "train.log_every": 1,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten images of two sizes with masks of three classes and something to ignore."""
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 8), ("val", 3)):
        for kind in ("images", "masks"):
            (root / kind / part).mkdir(parents=True)
        for i in range(count):
            size = (80, 72) if i % 2 else (66, 90)
            mask = np.zeros(size[::-1], np.uint8)
            mask[10:50, 10:40], mask[30:60, 30:60], mask[:4] = 1, 2, 255
            pixels = np.asarray(sample_image(i, size)).copy()
            for label in (1, 2):
                pixels[mask == label, label] = 250
            Image.fromarray(pixels).save(root / "images" / part / f"{i}.png")
            Image.fromarray(mask).save(root / "masks" / part / f"{i}.png")
    (root / "classes.txt").write_text("ground\nleaf\nstone\n")
    return root


def train(photos, output, **more):
    where = {"data.train": f"{photos}:train", "data.val": f"{photos}:val"}
    return convnext.train("segment_digits", TINY | where | more, output=output)


def test_a_run_leaves_weights_that_evaluate_to_the_same(photos, tmp_path):
    run = tmp_path / "run"
    # One evaluation, so that the best weights, which are loaded, are the last.
    result = train(photos, run, **{"segment.window": 48, "segment.stride": 32, "train.eval_every": 2})
    assert 0 < result.metrics["miou"] <= 100
    again = evaluate_loaded(load(run), None, 2, 0, 0.0, torch.device("cpu"))
    assert again.result.metrics == result.metrics
    page = (run / "report.html").read_text()
    assert page.count("ground truth<br>") == 3 + len(again.result.details["worst"])
    assert page.count("data:image/jpeg") == 3 * (3 + len(again.result.details["worst"]))
    assert "stone" in page
    loaded = load(run)
    assert (loaded.task, loaded.classes) == ("segment", ["ground", "leaf", "stone"])
    assert (loaded.preprocessing.window, loaded.preprocessing.stride) == (48, 32)
    loaded.preprocessing = loaded.preprocessing.multi_scale()
    several = evaluate_loaded(loaded, None, 2, 0, 0.0, torch.device("cpu")).result
    assert several.metrics["count"] == result.metrics["count"]
    assert several.details["confusion"] != again.result.details["confusion"]


def test_a_run_resumes_to_the_same_bits(photos, tmp_path):
    train(photos, tmp_path / "whole", **{"train.checkpoint_every": 1, "train.keep_checkpoints": 10, "model.drop_path": 0.2})
    again = tmp_path / "again"
    train(photos, again, **{"train.checkpoint_every": 1, "train.keep_checkpoints": 10, "model.drop_path": 0.2})
    for path in sorted((again / "checkpoints").iterdir())[1:]:
        path.unlink()  # as if killed after the first step
    where = {"data.train": f"{photos}:train", "data.val": f"{photos}:val"}
    more = {"train.checkpoint_every": 1, "train.keep_checkpoints": 10, "model.drop_path": 0.2}
    convnext.train("segment_digits", TINY | where | more, output=again, resume=True)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_wrong_mask_is_reported_before_the_run(photos, tmp_path):
    broken = tmp_path / "broken"
    (broken / "images").mkdir(parents=True)
    (broken / "masks").mkdir()
    for i in range(4):
        sample_image(i, (40, 40)).save(broken / "images" / f"{i}.png")
        Image.fromarray(np.full((40, 40), i % 2, np.uint8)).save(broken / "masks" / f"{i}.png")
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(broken / "masks" / "3.png")
    (broken / "classes.txt").write_text("ground\nleaf\n")
    with pytest.raises(ConvnextError, match=r"data\.(train|val) can't be used: .*masks/3\.png has the value 7 in 1600 pixels"):
        convnext.train("segment_digits", TINY | {"data.train": str(broken), "data.val": None}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_skips_as_many_unreadable_images_as_it_may(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        sample_image(i, (40, 40)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    (tmp_path / "classes.txt").write_text("ground\nleaf\n")
    (tmp_path / "images" / "2.png").write_bytes(b"\x89PNG")
    task, keys = tasks.get("segment"), [f"data.train={tmp_path}", f"data.val={tmp_path}"]
    message = (
        r"1 of 4 images of data\.train can't be read, more than 1\.0% \(data\.max_corrupt\): .*2\.png.*data\.max_corrupt=0\.25 or more"
    )
    with pytest.raises(ConvnextError, match=message):
        task.open(load_recipe("segment_digits", keys))
    assert len(task.open(load_recipe("segment_digits", [*keys, "data.max_corrupt=0.25"])).train) == 4
    assert [problem.split(":")[0] for problem in task.check(str(tmp_path))] == [str(tmp_path / "images" / "2.png")]


def test_a_missing_image_of_objects_is_reported_once(tmp_path):
    sample_image(0, (40, 40)).save(tmp_path / "0.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 40} for i in range(2)]
    shape = {"bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
    objects = [{"id": i, "image_id": i, "category_id": 1, **shape} for i in range(2)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "leaf"}]}))
    (problem,) = tasks.get("segment").check(f"coco:{tmp_path}/a.json:{tmp_path}")
    assert problem.endswith("1.png is missing")


def test_scenes_are_data_to_segment_too(tmp_path):
    data = convnext.tasks.get("segment").open_labelled("scenes:val", None, 11)
    assert data.classes[0] == "background"
    mask = data.mask(0)
    assert mask.shape == (128, 128)
    assert set(mask.unique().tolist()) > {0}
    assert torch.equal(mask, data.source.semantic(0))


def test_backbone_weights_of_any_format_go_under_a_segmenter():
    for name in ("convnext_atto", "resnet50", "swin_tiny"):
        alone = convnext.create_model(name, num_classes=7)
        model = convnext.create_model(f"upernet_{name}", num_classes=3, channels=16, auxiliary_channels=8, weights=alone.state_dict())
        images = torch.randn(1, 3, 64, 64)
        for one, other in zip(model.eval().backbone.features(images), alone.eval().features(images), strict=True):
            assert relative_error(one, other) < 1e-6
    with pytest.raises(ConvnextError, match="do not fit upernet_convnext_atto"):
        convnext.create_model("upernet_convnext_atto", weights=convnext.create_model("convnext_nano").state_dict())


def used_as_truth(photos, output, folder):
    """The evaluation of a run on its own predictions, which are copied to be the masks of a data set coded like the one trained on."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    items = find_items([str(photos / "images" / "val")])
    predictor = convnext.load(output, device="cpu")
    predict_all(predictor, items, [open_output(folder / "masks", None, predictor, items, None, False)])
    for item in items:
        Image.open(item.name).save(folder / "images" / Path(item.name).name)
    shutil.copy(photos / "classes.txt", folder)
    written = [Image.open(folder / "masks" / "0.png"), Image.open(io.BytesIO(predictor(items[0].name).png()))]
    assert written[0].tobytes() == written[1].tobytes()
    return evaluate_loaded(load(output), str(folder), None, 0, 0.0, torch.device("cpu"))


def recoded(photos, root, classes, table):
    """The same images with masks of other values or colours, 0, 1 and 2 by `table` and 255, as it is or by a fourth entry."""
    shutil.copytree(photos, root)
    (root / "classes.txt").write_text(classes, encoding="utf-8-sig")
    for path in (root / "masks").rglob("*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.array(table, np.uint8)[np.minimum(mask, 3)]).save(path)
    return root


@pytest.mark.parametrize(
    ("classes", "table", "ids"),
    [
        ("(other)\nground\nleaf\nstone\n", [1, 2, 3, 0], [1, 2, 3]),
        ("leaf\n(other)\nstone\n(void)\nground\n", [4, 0, 2, 255], [0, 2, 4]),
        ("(void) 0 0 0\nground 9 9 9\nleaf 0 250 0\nstone 1 2 3\n", [[9, 9, 9], [0, 250, 0], [1, 2, 3], [0, 0, 0]],
         [[9, 9, 9], [0, 250, 0], [1, 2, 3]]),
    ],
)  # fmt: skip
def test_predicted_masks_are_coded_as_the_data(photos, tmp_path, classes, table, ids):
    data = recoded(photos, tmp_path / "data", classes, table)
    train(data, tmp_path / "run", **{"train.epochs": 1})
    loaded = load(tmp_path / "run")
    assert loaded.class_ids == ids
    found = used_as_truth(data, tmp_path / "run", tmp_path / "again")
    assert found.result.metrics["miou"] == 100
    assert found.result.metrics["overall_accuracy"] == 100


def test_values_of_weights_that_do_not_say_them():
    ade = convnext.tasks.get("segment")
    assert ade.class_ids(None, 150) == list(range(1, 151))
    assert ade.class_ids(["a", "b"], 2) is None
    mask, classes = torch.tensor([[0, 1]], dtype=torch.uint8), ["a", "b"]
    for ids, wanted in ((None, [[0, 1]]), ([3, 9], [[3, 9]]), ([1, 300], [[1, 300]])):
        found = Image.open(io.BytesIO(SegmentPrediction(mask, classes, ids).png()))
        assert np.asarray(found).tolist() == wanted
        assert found.mode == ("I;16" if ids == [1, 300] else "L")


def test_a_palette_shows_the_values_and_changes_none(tmp_path):
    mask, classes = torch.tensor([[0, 1, 2]], dtype=torch.uint8), ["a", "b", "c"]
    prediction = SegmentPrediction(mask, classes, [3, 0, 200])
    (tmp_path / "x.png").write_bytes(prediction.png("palette"))
    found = Image.open(tmp_path / "x.png")
    assert found.mode == "P"
    assert np.asarray(found).tolist() == [[3, 0, 200]]  # as Pillow reads it, and mmsegmentation by it
    coding = Coding(("a", "b", "c"), ((3, 0), (0, 1), (200, 2)))
    assert read_mask(tmp_path / "x.png", coding).tolist() == [[0, 1, 2]]
    colours = [list(class_colour(label)) for label in range(3)]
    assert np.asarray(found.convert("RGB")).tolist() == [colours]
    assert np.asarray(Image.open(io.BytesIO(prediction.png("colours")))).tolist() == [colours]
    own = [[9, 9, 9], [0, 250, 0], [1, 2, 3]]
    for look in ("values", "palette", "colours"):
        coloured = SegmentPrediction(mask, classes, own)
        assert np.asarray(Image.open(io.BytesIO(coloured.png(look)))).tolist() == [own]
    assert Image.open(io.BytesIO(SegmentPrediction(mask, classes, [1, 300, 2]).png("palette"))).mode == "I;16"  # which has no palettes


def test_colour_masks_and_masks_of_values_do_not_mix(tmp_path):
    predictor = convnext.load(segmenter(tmp_path, class_ids=[5, 0, 7])[0], device="cpu")
    (tmp_path / "photos").mkdir()
    for i in range(2):
        sample_image(i).save(tmp_path / "photos" / f"{i}.png")
    items, of = find_items([str(tmp_path / "photos")]), fingerprint_of(predictor, {})
    predict_all(predictor, items, [open_output(tmp_path / "masks", "colour-masks", predictor, items, None, False, of)])
    found = np.asarray(Image.open(tmp_path / "masks" / "1.png"))
    wanted = np.array([class_colour(label) for label in range(3)])[np.asarray(predictor(items[1].name).mask)]
    assert (found == wanted).all()
    meaning = coding(read_classes(tmp_path / "masks" / "classes.txt"), "classes.txt")
    assert (read_mask(tmp_path / "masks" / "1.png", meaning) == np.asarray(predictor(items[1].name).mask)).all()
    with pytest.raises(UsageError, match=r"was started with --format colour-masks"):
        open_output(tmp_path / "masks", None, predictor, items, None, False, of)


@pytest.mark.slow
def test_a_service_and_the_exported_file_know_the_coding_too(tmp_path):
    from convnext.export.export import describe

    path = segmenter(tmp_path, class_ids=[5, 0, 7])[0]
    assert describe(load(path))["class_ids"] == [5, 0, 7]
    with running(path) as service:
        client = service.wait().client
        (listed,) = client.get("/models").json()
        answer = client.post("/predict", content=encoded(sample_image())).json()
    assert listed["class_ids"] == [5, 0, 7]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
    shares = {CLASSES[[5, 0, 7].index(value)]: count / mask.size for value, count in zip(*np.unique(mask, return_counts=True), strict=True)}
    assert shares == pytest.approx({one["class"]: one["share"] for one in answer["classes"]})


def test_evaluation_json_is_plain(photos, tmp_path):
    train(photos, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len(found["iou"]) == 3
    assert [one["index"] for one in found["shown"]] == [0, 1, 2]
    assert sorted(one["image"].rpartition("/")[2] for one in found["worst"]) == ["0.png", "1.png", "2.png"]
    mious = [one["image_miou"] for one in found["worst"]]
    assert mious == sorted(mious)
    assert found["iou_interval"] == [None] * 3  # of three images


def test_colours_are_distorted_in_rgb_alone():
    with pytest.raises(UsageError, match="segment.distort changes the colours of RGB images, not of 1 channels: add segment.distort=false"):
        tasks.get("segment").open(load_recipe("segment_digits", ["segment.distort=true", "data.channels=1", "data.mean=auto"]))
