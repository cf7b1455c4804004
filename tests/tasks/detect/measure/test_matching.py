"""Confusion, precision, recall, F1 and false alarms of detections, against plain loops and against numbers worked out by hand."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convnext.errors import ConvnextError
from convnext.tasks.detect.measure.evaluated import Annotated, Detected, EvaluatedImage
from convnext.tasks.detect.measure.matching import confusion, errors, match
from convnext.tasks.detect.measure.threshold import THRESHOLDS, count, false_alarms
from convnext.tasks.detect.metric import KEPT_WORST, DetectMetric
from convnext.tasks.detect.report import sections, summary, summary_line

CLASSES = ["ant", "bee", "wasp"]


def an_image(truth, found):
    """Objects as (label, box, crowd), detections as (label, score, box)."""
    boxes = [np.array([box for *_, box in rows], dtype=float).reshape(-1, 4) for rows in ([(a, b) for a, b, _ in truth], found)]
    annotated = Annotated(
        boxes[0], np.array([label for label, *_ in truth], dtype=int), None,
        (boxes[0][:, 2:] - boxes[0][:, :2]).prod(1), np.array([crowd for *_, crowd in truth], dtype=bool),
    )  # fmt: skip
    scores = np.array([score for _, score, _ in found], dtype=float)
    return EvaluatedImage(annotated, Detected(boxes[1], np.array([label for label, *_ in found], dtype=int), None, scores))


def at(x, width=10):
    return (x, 0, x + width, 10)


def drawn(rng):
    """An image of objects in a row, detections shifted by up to half an object, of any class, some scores equal."""
    places = range(0, 12 * int(rng.integers(0, 7)), 12)
    truth = [(int(rng.integers(3)), at(x), bool(rng.random() < 0.15)) for x in places]
    found = [
        (
            label if rng.random() < 0.7 else int(rng.integers(3)),
            round(float(rng.uniform(0.06, 1)), 1),
            at(box[0] + float(rng.normal(0, 2.5))),
        )
        for label, box, _ in truth
        for _ in range(int(rng.integers(0, 4)))
    ]
    return an_image(truth, found + [(int(rng.integers(3)), 0.4, at(500)) for _ in range(int(rng.integers(0, 2)))])


def iou(one, other, crowd):
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    area = (one[2] - one[0]) * 10
    return width * 10 / (area if crowd else area + (other[2] - other[0]) * 10 - width * 10)


def reference(images, threshold):
    """The confusion matrix by plain loops, straight from its definition."""
    matrix = [[0] * 4 for _ in range(4)]
    for image in images:
        truth, found = image.truth, image.found
        order = sorted((i for i in range(len(found.scores)) if found.scores[i] > threshold), key=lambda i: -found.scores[i])
        taken, left = set(), []
        for i in order:
            near = [
                (iou(found.boxes[i], truth.boxes[j], truth.crowds[j]), j)
                for j in range(len(truth.labels))
                if truth.labels[j] == found.labels[i] and j not in taken
            ]
            good = [pair for pair in near if pair[0] >= 0.5 and not truth.crowds[pair[1]]]
            if good:
                taken.add(max(good)[1])
                matrix[found.labels[i]][found.labels[i]] += 1
            elif not any(value >= 0.5 for value, _ in near):
                left.append(i)
        for i in left:
            near = [
                (iou(found.boxes[i], truth.boxes[j], False), -j) for j in range(len(truth.labels)) if j not in taken and not truth.crowds[j]
            ]
            value, j = max(near, default=(0, 0))
            if value >= 0.5:
                taken.add(-j)
                matrix[truth.labels[-j]][found.labels[i]] += 1
            else:
                matrix[3][found.labels[i]] += 1
        for j in range(len(truth.labels)):
            matrix[truth.labels[j]][3] += j not in taken and not truth.crowds[j]
    return matrix


def test_confusion_and_curves_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    images = [drawn(rng) for _ in range(150)]
    matched = [match(image) for image in images]
    counts, seen = count(matched, 3), set()
    for threshold in (0.05, 0.3, 0.41, 0.7, 0.99):
        found = confusion(matched, [errors(one, threshold) for one in matched], 3)
        wanted = reference(images, threshold)
        assert found == wanted
        seen |= {(i, j) for i, row in enumerate(wanted) for j, number in enumerate(row) if number}
        index = THRESHOLDS.index(threshold)
        for label in range(3):
            right, detected = wanted[label][label], sum(row[label] for row in wanted)
            assert (counts.right[label, index], counts.false[label, index]) == (right, detected - right)
            assert counts.objects[label] == sum(wanted[label])
    assert len(seen) == 15  # of 16: nothing is not found nowhere


def test_the_best_threshold_is_that_of_the_highest_f1():
    # By hand: 3 objects, found with 0.9, 0.8 and 0.3; false ones with 0.7, 0.25 and 0.2. F1 is 2 * 3 / (3 + 4) = 6 / 7 from 0.25 to below 0.3.
    image = an_image(
        [(0, at(x), False) for x in (0, 20, 40)],
        [(0, 0.9, at(0)), (0, 0.8, at(20)), (0, 0.3, at(40)), (0, 0.7, at(60)), (0, 0.25, at(80)), (0, 0.2, at(100))],
    )
    counts = count([match(image)], 2)
    best = counts.in_all().best()
    assert THRESHOLDS[best] == 0.27
    assert counts.at(best) == {"precision": 75, "recall": 100, "f1": pytest.approx(600 / 7)}
    assert counts.at(best, 1) == {"precision": None, "recall": None, "f1": None}
    assert counts.best(1) is None
    curve = counts.in_all().curve()
    assert (curve["recall"][0], curve["recall"][-1], curve["precision"][-1]) == (100, 0, None)


def test_false_alarms_are_of_images_without_any_annotation():
    crowd = an_image([(0, at(0), True)], [(0, 0.9, at(100))])
    empty = [an_image([], [(1, score, at(0)) for score in scores]) for scores in ((), (0.3, 0.2), (0.6, 0.55))]
    images, rows = false_alarms([match(one) for one in (crowd, *empty)], 0.25)
    assert images == 3
    assert rows[0] == {"threshold": 0.25, "images": 2, "percent": pytest.approx(200 / 3), "per_image": 1}
    assert rows[1] == {"threshold": 0.5, "images": 1, "percent": pytest.approx(100 / 3), "per_image": pytest.approx(2 / 3)}
    assert false_alarms([match(crowd)], None) == (0, [])


class Rows:
    """A source of images of one size, as a metric and its report take it."""

    classes, category_ids, has_masks = CLASSES, {}, False

    def __init__(self, images):
        self.images = images

    def name(self, index):
        return f"{index}.png"

    def read(self, index):
        from PIL import Image

        return Image.new("RGB", (120, 40), "white")

    def encoded_target(self, index):
        from convnext.data.annotations.objects import ImageObjects

        truth = self.images[index].truth
        parts = (torch.tensor(truth.boxes).float(), torch.tensor(truth.labels), None, torch.tensor(truth.crowds), torch.tensor(truth.areas))
        return ImageObjects(*parts, 100 - index)


def measured(images, parts):
    """A metric over some parts of a source, each measured by another process."""
    source, metrics = Rows(images), []
    for indices in parts:
        metric = DetectMetric(source)
        for index in indices:
            found = images[index].found
            detections = {key: torch.tensor(getattr(found, key)) for key in ("boxes", "labels", "scores")}
            metric.update([detections], SimpleNamespace(targets=[source.encoded_target(index).to_dict()], indices=[index]))
        metrics.append(metric)
    main, *others = metrics
    for other in others:
        main.merge(pickle.loads(pickle.dumps(other)))
    return main, source


def test_the_worst_images_are_named_and_processes_together_find_the_same():
    rng = np.random.default_rng(1)
    images = [drawn(rng) for _ in range(40)]
    alone, source = measured(images, [range(40)])
    together, _ = measured(images, [range(1, 40, 3), range(0, 40, 3), range(2, 40, 3)])
    metrics, details = alone.compute(), alone.details()
    assert (together.compute(), together.details()) == (metrics, details)
    json.dumps(details, allow_nan=False)
    threshold, worst = details["at_threshold"]["threshold"], details["worst"]
    totals = {index: errors(match(image), threshold).total() for index, image in enumerate(images)}
    assert [one["index"] for one in worst] == sorted(totals, key=lambda index: (-totals[index], index))[:KEPT_WORST]
    for one in worst:
        assert one["missed"] + one["false"] + one["confused"] == totals[one["index"]]
        assert (one["image"], len(one["kinds"])) == (f"{one['index']}.png", len(one["boxes"]))
    confused = details["confusion"]
    assert metrics["box_recall"] == pytest.approx(100 * sum(confused[i][i] for i in range(3)) / sum(map(sum, confused[:3])))
    assert threshold == metrics["best_threshold"]
    html = "".join(section.title + section.body for section in sections(details, CLASSES, source))
    for part in (
        "Worst images",
        f"{worst[0]['missed']} missed, {worst[0]['false']} false",
        "over the score threshold",
        "background",
        "wasp",
    ):
        assert part in html
    text = summary(metrics, details, CLASSES)
    assert f"scores above {threshold:.2f} (the threshold of the highest F1)" in text
    (row,) = (line.split() for line in text.splitlines() if line.startswith("background"))
    assert row == ["background", *map(str, confused[3][:3]), "–"]


def test_images_without_any_object_have_false_alarms_and_no_ap():
    images = [an_image([], [(0, score, at(0))]) for score in (0.3, 0.6)]
    metric, source = measured(images, [range(2)])
    metrics, details = metric.compute(), metric.details()
    assert metrics == {"count": 2, "false_alarms": 50}
    assert summary_line(metrics) == "no AP without annotated objects, false alarms in 50.00 % of 2 images"
    assert json.loads(json.dumps(details, allow_nan=False))["at_threshold"] == {
        "threshold": 0.5, "iou": 0.5, "is_best": False, "precision": 0, "recall": None, "f1": None,
    }  # fmt: skip
    lines = summary(metrics, details, CLASSES).splitlines()
    assert lines[-1] == "false alarms at scores above 0.50: in 1 of 2 images without objects (50.0 %), 0.50 detections per such image"
    assert [section.title for section in sections(details, CLASSES, source)][-1] == "Images without objects"


def test_a_detector_that_finds_nothing_has_no_best_threshold():
    metric, source = measured([an_image([(0, at(0), False)], [])], [[0]])
    metrics, details = metric.compute(), metric.details()
    assert metrics["box_ap"] == 0
    assert "best_threshold" not in metrics
    assert details["confusion"][0] == [0, 0, 0, 1]
    assert "(as no threshold finds an object), boxes at IoU 0.5: precision –, recall 0.0 %, F1 0.0 %:" in summary(metrics, details, CLASSES)
    assert sections(details, CLASSES, source)


def test_a_class_that_there_is_not_is_refused():
    """As of a detector of one's own whose background is class 0."""
    with pytest.raises(
        ConvnextError, match="the detector found class 3, but there are 3 classes, counted from 0: the background is no class"
    ):
        measured([an_image([(0, at(0), False)], [(0, 0.9, at(0)), (3, 0.9, at(0))])], [[0]])
