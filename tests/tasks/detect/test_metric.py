"""Against pycocotools: real ground truth with crowds, predictions that miss it by noise."""

import contextlib
import io
import json
import pickle

import numpy as np
import pytest
import torch
from helpers import shared
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convnext.data.sources.open import open_detection
from convnext.tasks.detect.measure.average_precision import AveragePrecision

SUFFIXES = ("", "50", "75", "_small", "_medium", "_large")
IMAGES = 40  # of COCO's validation images: with crowds and objects of all sizes


def noisy(objects, classes, rng):
    """Each object found up to three times, moved, sometimes under another name; scores with ties."""
    boxes, labels, scores, masks = [], [], [], []
    for box, label, mask in zip(objects.boxes.numpy(), objects.labels.tolist(), objects.masks, strict=True):
        sides = box[2:] - box[:2]
        for spread in rng.choice([0.02, 0.05, 0.1, 0.2], rng.integers(0, 4)):
            moved = box + rng.normal(0, spread, 4) * np.tile(sides, 2)
            boxes.append(np.concatenate([np.minimum(moved[:2], moved[2:] - 1), moved[2:]]).astype(np.float32))
            labels.append(label if rng.random() > 0.1 else int(rng.integers(classes)))
            scores.append(round(rng.random(), 2))
            shift = [int(step) for step in rng.normal(0, spread / 2, 2) * sides[::-1]]
            masks.append(torch.roll(mask, shift, (0, 1)).bool())
    height, width = objects.masks.shape[1:]
    return {
        "boxes": torch.tensor(np.array(boxes, dtype=np.float32)).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "masks": torch.stack(masks)[:, None] if masks else torch.zeros(0, 1, height, width, dtype=torch.bool),
    }


def as_results(prediction, image_id, categories, kind):
    """A prediction in the form that pycocotools loads."""
    for box, label, score, mask in zip(*(prediction[key] for key in ("boxes", "labels", "scores", "masks")), strict=True):
        left, top, right, bottom = box.double().tolist()
        what = {"bbox": [left, top, right - left, bottom - top]}
        if kind == "segm":
            what = {"segmentation": run_lengths.encode(np.asfortranarray(mask[0].numpy().astype(np.uint8)))}
        yield {"image_id": image_id, "category_id": categories[label], "score": float(score)} | what


@pytest.fixture(scope="module")
def real():
    """(source, its objects, predictions, pycocotools' evaluations by kind) of the first of COCO's validation images."""
    source, rng = open_detection(str(shared("data/coco/val2017"))), np.random.default_rng(0)
    file = shared("data/coco/annotations/instances_val2017.json")
    categories = sorted(category["id"] for category in json.loads(file.read_text())["categories"])
    objects = [source.target(i) for i in range(IMAGES)]
    predictions = [noisy(one, len(source.classes), rng) for one in objects]
    reference = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        for kind in ("bbox", "segm"):
            found = [r for i, p in enumerate(predictions) for r in as_results(p, source.ids[i], categories, kind)]
            reference[kind] = COCOeval(truth, truth.loadRes(found), kind)
            reference[kind].params.imgIds = source.ids[:IMAGES]
            reference[kind].evaluate()
            reference[kind].accumulate()
            reference[kind].summarize()
    return source, [one.to_dict() for one in objects], predictions, reference


def measured(real, indices, predictions=None):
    source, targets, found, _ = real
    metric = AveragePrecision(source.classes, with_masks=True)
    for i in indices:
        metric.update([(predictions or found)[i]], [targets[i]])
    return metric


@pytest.fixture(scope="module")
def whole(real):
    """Our evaluation of all of them."""
    return measured(real, range(IMAGES))


def test_ap_is_that_of_pycocotools(real, whole):
    source, targets, _, reference = real
    metric = whole
    found = metric.compute()
    assert found["count"] == IMAGES
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        ours = [found[f"{name}_ap{suffix}"] for suffix in SUFFIXES]
        assert ours == pytest.approx(100 * reference[kind].stats[:6], abs=1e-6)
        assert 5 < ours[0] < 80  # neither perfect nor lost: the thresholds matter
        precision = reference[kind].eval["precision"][:, :, :, 0, -1]
        for label, row in enumerate(metric.by_class()):
            values = precision[:, :, label][precision[:, :, label] > -1]
            assert row[f"{name}_ap"] == (pytest.approx(100 * values.mean(), abs=1e-6) if len(values) else None)
    rows = metric.by_class()
    assert [row["class"] for row in rows] == source.classes
    crowds = torch.cat([one["iscrowd"] for one in targets])
    assert sum(row["objects"] for row in rows) == (~crowds).sum() < len(crowds)
    json.dumps(metric.by_class(), allow_nan=False)


def test_recall_and_ap_by_area_and_iou_are_those_of_pycocotools(real, whole):
    _, targets, _, reference = real
    found, by_area, by_iou = whole.compute(), whole.by_area(), whole.by_iou()
    assert [row["iou"] for row in by_iou] == pytest.approx(reference["bbox"].params.iouThrs)
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        stats, precision = 100 * reference[kind].stats, reference[kind].eval["precision"][..., 0, -1]
        assert [found[f"{name}_ar{count}"] for count in (1, 10, 100)] == pytest.approx(stats[6:9], abs=1e-6)
        assert [row[f"{name}_ap"] for row in by_area] == pytest.approx(stats[[0, 3, 4, 5]], abs=1e-6)
        assert [row[f"{name}_ar"] for row in by_area] == pytest.approx(stats[8:], abs=1e-6)
        assert [row[f"{name}_ap"] for row in by_iou] == pytest.approx([100 * at[at > -1].mean() for at in precision], abs=1e-6)
        for label, row in enumerate(whole.by_class()[:5]):
            at, small = precision[5, :, label], reference[kind].eval["precision"][:, :, label, 1, -1]
            assert row[f"{name}_ap75"] == (pytest.approx(100 * at.mean(), abs=1e-6) if at.min() > -1 else None)
            assert row[f"{name}_ap_small"] == (pytest.approx(100 * small.mean(), abs=1e-6) if small.min() > -1 else None)
    assert [row["area"] for row in by_area] == ["all", "small", "medium", "large"]
    assert by_area[0]["objects"] == sum((~one["iscrowd"]).sum() for one in targets)


@pytest.mark.parametrize("count", [100, 130])
def test_more_than_100_detections_of_an_image_count_too(count):
    """As many objects of one class, all of them found; a second image, so that the limit is that of the image with the most."""
    corners = torch.arange(count, dtype=torch.float32)[:, None] * 20
    boxes = torch.cat([corners, corners * 0, corners + 10, corners * 0 + 10], 1)
    metric = AveragePrecision(["dot"], with_masks=False)
    for image_id, some in enumerate((boxes, boxes[:3])):
        zeros = torch.zeros(len(some))
        truth = {"boxes": some, "labels": zeros.long(), "iscrowd": zeros.bool(), "area": zeros + 100, "image_id": image_id}
        metric.update([{"boxes": some, "labels": zeros.long(), "scores": zeros + 0.5}], [truth])
    found = metric.compute()
    assert metric.max_detections() == count
    assert (found["box_ap"], found["box_ap_small"], metric.by_area()[0]["box_ar"]) == (100, 100, 100)
    assert found["box_ar100"] == pytest.approx(100 * 103 / (count + 3))


def test_processes_together_measure_what_one_does(real):
    alone = measured(real, range(12)).compute()
    parts = [measured(real, range(rank, 12, 3)) for rank in (2, 0, 1)]
    first = pickle.loads(pickle.dumps(parts[0]))
    first.compute()  # what was measured before does not stay
    for other in parts[1:]:
        first.merge(other)
    assert first.compute() == alone


def test_masks_are_kept_small(real):
    metric = measured(real, range(10))
    pixels = sum(p["masks"].numel() for p in real[2][:10])
    assert len(pickle.dumps(metric)) < pixels / 50


def test_boxes_alone(real):
    source, targets, predictions, reference = real
    metric = AveragePrecision(source.classes, with_masks=False)
    for prediction, target in zip(predictions, targets, strict=True):
        boxes = {key: value for key, value in target.items() if key != "masks"}
        metric.update([{key: prediction[key] for key in ("boxes", "labels", "scores")}], [boxes])
    found = metric.compute()
    assert [found[f"box_ap{suffix}"] for suffix in SUFFIXES] == pytest.approx(100 * reference["bbox"].stats[:6], abs=1e-6)
    assert not any(key.startswith("mask") for key in found)


def test_nothing_found_and_nothing_there(real):
    source = real[0]
    metric = AveragePrecision(source.classes, with_masks=True)
    assert metric.compute() == {"count": 0}
    first = metric.by_class()[0]
    assert first.items() >= {"class": "person", "objects": 0, "box_ap": None, "mask_ap": None, "mask_ap_small": None}.items()
    objects = source.target(0)
    none = noisy(objects.take(torch.zeros(len(objects), dtype=torch.bool)), 80, np.random.default_rng(0))
    metric.update([none], [objects.to_dict()])
    assert metric.compute()["box_ap"] == metric.compute()["mask_ap50"] == 0
    perfect = {"boxes": objects.boxes, "labels": objects.labels, "scores": torch.ones(len(objects)), "masks": objects.masks.bool()}
    metric.update([perfect], [objects.to_dict()])  # the same image again, not a second one
    assert metric.compute()["count"] == 1
    assert metric.compute()["box_ap"] == metric.compute()["mask_ap"] == 100
    empty = AveragePrecision(source.classes, with_masks=True)
    empty.update([perfect], [objects.take(torch.zeros(len(objects), dtype=torch.bool)).to_dict()])
    assert empty.compute() == {"count": 1}


def test_half_precision_and_masks_without_a_channel(real):
    halved = [p | {"boxes": p["boxes"].bfloat16(), "scores": p["scores"].half(), "masks": p["masks"][:, 0]} for p in real[2][:5]]
    found, wanted = measured(real, range(5), halved).compute(), measured(real, range(5)).compute()
    assert found["mask_ap"] == pytest.approx(wanted["mask_ap"], abs=1e-6)
