import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import CLASSES, detector

import convnext
from convnext.data.run_lengths import decode
from convnext.data.sampling.order import EVALUATION
from convnext.data.sources.scenes import Scenes
from convnext.errors import ConvnextError, TooLargeError, UsageError
from convnext.evaluate import evaluate_loaded
from convnext.models.load import load

TINY = {
    "model.name": "mask_rcnn_convnext_atto",
    "model.width": None,
    "model.depths": [1, 1, 1, 1],
    "model.widths": [8, 16, 24, 32],
    "model.channels": 16,
    "model.fc_channels": 32,
    "data.workers": 0,
    "detect.short": [64],
    "detect.longest": 96,
    "detect.crop_short": [72],
    "detect.crop": [48, 64],
    "detect.test_short": 64,
    "detect.test_longest": 96,
    "train.epochs": 2,
    "train.warmup_steps": 1,
    "train.batch_size": 2,
    "train.eval_every": 2,
    "train.log_every": 1,
}


def write_coco(root, part, count, boxes_only=False):
    """Scenes as a data set in COCO's format, the last image without objects."""
    scenes, images, annotations = Scenes("train", size=64), [], []
    (root / part).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(scenes.pixels(i).permute(1, 2, 0).numpy()).save(root / part / f"{i}.png")
        images.append({"id": i + 10, "file_name": f"{i}.png", "height": 64, "width": 64})
        target = scenes.target(i)
        for box, label, mask in zip(target.boxes.tolist(), target.labels.tolist(), target.masks, strict=True) if i < count - 1 else ():
            flat = np.asfortranarray(mask.numpy()).ravel(order="F")
            changes = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff([0, *changes, len(flat)]).tolist()
            one = {"id": len(annotations) + 1, "image_id": i + 10, "category_id": 3 * label + 1, "iscrowd": 0}
            one |= {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "area": int(flat.sum())}
            if not boxes_only:
                one["segmentation"] = {"size": [64, 64], "counts": counts if not flat[0] else [0, *counts]}
            annotations.append(one)
    categories = [{"id": 3 * label + 1, "name": str(label)} for label in range(10)]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(values))
    return root / part


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    return {"data.train": str(write_coco(root, "train", 7)), "data.val": str(write_coco(root, "val", 3))}


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_run_leaves_weights_that_evaluate_to_the_same(coco, tmp_path, kind):
    run, more = tmp_path / "run", {"model.name": f"{kind}_convnext_atto"}
    result = convnext.train("detect_digits", TINY | coco | more, output=run)
    assert result.metrics["count"] == 3
    assert 0 <= result.metrics["box_ap"] <= 100
    again = evaluate_loaded(load(run), None, 2, 0, 0.0, torch.device("cpu"))
    assert again.result.metrics == result.metrics
    page = (run / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2 * (3 + len(again.result.details["worst"]))
    assert "annotated, and found" in page
    loaded = load(run)
    assert (loaded.task, loaded.classes) == ("detect", [str(digit) for digit in range(10)])
    assert (loaded.preprocessing.short, loaded.preprocessing.longest) == (64, 96)


def test_average_precision_by_class_is_in_the_json_and_on_the_terminal(coco, tmp_path):
    run, weights = tmp_path / "run", detector(tmp_path, [7, 4, 1])[0]
    truth = json.loads((Path(coco["data.val"]).parent / "annotations" / "instances_val.json").read_text())
    truth["categories"] = [{"id": 3 * i + 1, "name": name} for i, name in enumerate(reversed(CLASSES))]
    for annotation in truth["annotations"]:
        annotation["category_id"] = 3 * (annotation["id"] % 3) + 1
    run.with_suffix(".json").write_text(json.dumps(truth))
    found = evaluate_loaded(load(weights), f"coco:{run.with_suffix('.json')}:{coco['data.val']}", None, 0, 0.0, torch.device("cpu"))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [row["class"] for row in told["classes"]] == CLASSES
    assert all(row.keys() >= {"objects", "box_ap", "mask_ap", "mask_ap_small", "precision", "f1"} for row in told["classes"])
    assert sum(row["objects"] for row in told["classes"]) == len(truth["annotations"])
    known = [row["box_ap"] for row in told["classes"] if row["box_ap"] is not None]
    assert sum(known) / len(known) == pytest.approx(told["box_ap"])
    assert told.keys() >= {"remarks", "corrupt", "shown", "mask_ap", "count"}
    lines = [" ".join(line.split()) for line in found.to_text().splitlines()]
    assert lines[2] == "class objects box AP % box AP50 % mask AP % mask AP50 % precision % recall % F1 % best threshold"
    assert [line.split()[:2] for line in lines[3:6]] == [[row["class"], str(row["objects"])] for row in told["classes"]]


def test_category_ids_travel_with_the_weights(coco, tmp_path):
    convnext.train("detect_digits", TINY | coco | {"train.epochs": 1}, output=tmp_path / "run")
    assert load(tmp_path / "run").class_ids == convnext.load(tmp_path / "run").class_ids == [3 * digit + 1 for digit in range(10)]
    assert convnext.load(detector(tmp_path)[0]).class_ids is None


def test_masks_and_objects_of_low_score_can_be_skipped(tmp_path):
    path, model, how = detector(tmp_path)
    image = Scenes("val", size=64).read(0)
    found = convnext.load(path, device="cpu").infer([image])[0]
    assert len(found.masks) == len(found.scores) > 3
    predictor = convnext.load(path, device="cpu")
    (bare,) = predictor.infer([image], masks=False)
    assert bare.masks is None
    assert torch.equal(bare.boxes, found.boxes)
    limit = float(found.scores[2])
    (sure,) = predictor.infer([image], threshold=limit)
    assert 0 < len(sure.scores) < len(found.scores)
    assert sure.scores.min() > limit
    assert sure.to_text().count("%") == len(sure.scores)  # those below 0.5, too
    with pytest.raises(TooLargeError, match=r"the masks of \d+ objects hold .* million pixels, more than 0 million: .*no masks"):
        predictor.infer([image], max_pixels=10)
    (wanted,) = model.predict([how.transform()(image)], [(64, 64)])
    assert [torch.equal(decode(runs).bool(), mask[0]) for runs, mask in zip(found.masks, wanted["masks"], strict=True)] == [True] * len(
        found.masks
    )


def test_evaluation_keeps_neither_masks_nor_annotations_as_pixels(coco, tmp_path):
    task, loaded = convnext.tasks.get("detect"), load(detector(tmp_path)[0])
    source = task.open_labelled(coco["data.val"], None, 10)
    samples = task.evaluation_samples(source, loaded.preprocessing)
    batch = task.collate([samples[EVALUATION, 0]])
    found = task.predict(loaded.model, batch, loaded.preprocessing)
    for masks in (batch.targets[0]["masks"], found[0]["masks"]):
        assert masks
        assert all(set(runs) == {"size", "counts"} for runs in masks)
    wanted = source.target(0).masks
    assert torch.equal(torch.stack([decode(runs) for runs in batch.targets[0]["masks"]]), wanted)


def test_a_run_resumes_to_the_same_bits(coco, tmp_path):
    more = {"train.checkpoint_every": 1, "train.keep_checkpoints": 10, "model.drop_path": 0.2}
    more |= {"augment.mosaic": 0.5, "augment.copy_paste": 0.5, "augment.rotate": 20}
    for name in ("whole", "again"):
        convnext.train("detect_digits", TINY | coco | more, output=tmp_path / name)
    for path in sorted((tmp_path / "again" / "checkpoints").iterdir())[2:]:
        path.unlink()  # as if killed after the second step
    convnext.train("detect_digits", TINY | coco | more, output=tmp_path / "again", resume=True)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_boxes_alone_are_learned_where_there_are_no_masks(tmp_path):
    where = {f"data.{part}": str(write_coco(tmp_path / "boxes", part, 3, boxes_only=True)) for part in ("train", "val")}
    more = {"model.masks": False, "model.anchor_scale": 4, "model.proposals": 20, "model.regions": 16}
    result = convnext.train("detect_digits", TINY | where | more, output=tmp_path / "run")
    assert "box_ap" in result.metrics
    assert "mask_ap" not in result.metrics
    predictor = convnext.load(tmp_path / "run")
    assert not [key for key in predictor.model.state_dict() if "mask" in key]
    assert (predictor.model.rpn_head.test_limits.kept, predictor.model.roi_head.sampler.count) == (20, 16)
    found = predictor(Scenes("val", size=64).read(0))
    assert found.masks is None
    assert all("mask" not in one for one in found.to_json()["objects"])


def test_data_that_no_detector_learns_from_are_refused(coco, tmp_path):
    root = tmp_path / "boxes"
    boxes = str(write_coco(root, "train", 3, boxes_only=True))
    with pytest.raises(ConvnextError, match=r"has boxes but no masks.*model\.masks=false"):
        convnext.train("detect_digits", TINY | coco | {"data.train": boxes}, output=tmp_path / "run")
    alone = TINY | {"data.train": boxes, "data.val": boxes, "model.masks": False, "augment.copy_paste": 0.5}
    with pytest.raises(UsageError, match=r"augment\.copy_paste=0\.5 cuts objects out by their masks, and data\.train has boxes alone"):
        convnext.train("detect_digits", alone, output=tmp_path / "run")
    empty = str(write_coco(tmp_path / "empty", "val", 1))
    with pytest.raises(ConvnextError, match="no AP without annotated objects|hold no object"):
        convnext.train("detect_digits", TINY | coco | {"data.val": empty}, output=tmp_path / "run")
