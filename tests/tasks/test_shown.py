import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import sample_image

from convnext.data.run_lengths import encode
from convnext.inference.api import Predicted
from convnext.report import palette
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.detect.prediction import DetectPrediction
from convnext.tasks.multilabel.prediction import MultilabelPrediction
from convnext.tasks.regress.prediction import ValuePrediction
from convnext.tasks.segment.prediction import SegmentPrediction
from convnext.tasks.shown import with_thumbnail, with_thumbnails

CLASSES = ["ants", "<b>", "wasps"]


def detections(masks=None):
    boxes = torch.tensor([[200.0, 100.0, 600.0, 500.0], [0.0, 0.0, 9.0, 9.0]])
    return DetectPrediction(boxes, torch.tensor([2, 0]), torch.tensor([0.9, 0.1]), masks, CLASSES)


def test_objects_are_shown_from_the_callers_threshold_on():
    usual, asked = detections(), replace(detections(), shown=0.1)
    assert (usual.to_text(), asked.to_text()) == ("wasps 90.0%", "wasps 90.0%  ants 10.0%")
    assert (len(usual.bars()), len(asked.bars()), asked.note()) == (1, 2, "")
    image = sample_image(size=(640, 520))
    assert asked.draw(image).tobytes() != usual.draw(image).tobytes()


@pytest.fixture
def ipython(monkeypatch):
    module = ModuleType("IPython")
    module.get_ipython = object  # a shell
    monkeypatch.setitem(sys.modules, "IPython", module)


@pytest.mark.parametrize("is_imported", [False, True])
def test_outside_of_ipython_a_prediction_keeps_no_image(monkeypatch, is_imported):
    module = ModuleType("IPython")
    module.get_ipython = lambda: None  # no shell
    monkeypatch.setitem(sys.modules, "IPython", module if is_imported else None)
    (one,) = with_thumbnails([ClassifyPrediction(torch.tensor([0.9, 0.1, 0.0]), CLASSES)], [sample_image()])
    assert one.thumbnail is None
    assert "<img" not in one._repr_html_()
    assert "&lt;b&gt;" in one._repr_html_()


def test_a_prediction_of_any_task_is_shown_with_its_image(ipython):
    probabilities = torch.tensor([0.9, 0.6, 0.0])
    mask = torch.zeros(40, 48, dtype=torch.uint8)
    kinds = [
        (ClassifyPrediction(probabilities, CLASSES, coverage=0.9, members=[0, 1]), "90% set"),
        (MultilabelPrediction(probabilities, CLASSES), "ants 90.0%"),
        (ValuePrediction(torch.tensor([2.5]), ["value"]), "2.5"),
        (detections(), "1 object of a score below 0.5"),
        (SegmentPrediction(mask, CLASSES), "100.0%"),
    ]
    shown = with_thumbnails([one for one, _ in kinds], [sample_image()] * len(kinds))
    for one, (_, words) in zip(shown, kinds, strict=True):
        html = one._repr_html_()
        assert html.count("<img") == 1
        assert words in html
        assert repr(one) == f"{type(one).__name__}({one.to_text()})"


@pytest.mark.parametrize("with_masks", [False, True])
def test_boxes_and_masks_lie_where_they_lie_on_the_image(ipython, with_masks):
    mask = torch.zeros(800, 1280, dtype=torch.bool)
    mask[100:500, 200:600] = True
    masks = [encode(mask), encode(torch.zeros(800, 1280, dtype=torch.bool))] if with_masks else None
    found = with_thumbnail(detections(masks), sample_image(size=(1280, 800)))
    drawn = np.asarray(found.drawn_on(found.thumbnail)).astype(int)
    assert drawn.shape == (400, 640, 3)
    assert drawn[150, 100].tolist() == list(palette.class_colour(2))  # the left edge, at half the image's 200 pixels
    plain = np.asarray(found.thumbnail.open()).astype(int)
    inside = np.abs(drawn[60:240, 110:290] - plain[60:240, 110:290]).sum()
    assert (inside > 0) == with_masks


def test_classes_of_pixels_lie_where_they_lie_on_the_image(ipython):
    mask = torch.zeros(800, 1280, dtype=torch.uint8)
    mask[:, 640:] = 1
    found = with_thumbnail(SegmentPrediction(mask, CLASSES), sample_image(size=(1280, 800)))
    drawn = np.asarray(found.drawn_on(found.thumbnail)).astype(int)
    plain = np.asarray(found.thumbnail.open()).astype(int)
    for column, label in ((40, 0), (600, 1)):
        wanted = 0.4 * plain[50, column] + 0.6 * np.array(palette.class_colour(label))
        assert np.abs(drawn[50, column] - wanted).max() <= 1


def test_predictions_of_many_images_show_the_first_and_count_the_others(ipython):
    one = ClassifyPrediction(torch.tensor([0.9, 0.1, 0.0]), CLASSES)
    html = Predicted({f"{i}.jpg": one for i in range(30)}, {"bad.jpg": "cut short"})._repr_html_()
    assert "11.jpg" in html
    assert "12.jpg" not in html
    assert "error: cut short" in html
    assert "and 18 more" in html
