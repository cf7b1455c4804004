"""`data.sampler` in the tasks whose images show several classes."""

import numpy as np
import pytest
from helpers import image_folder

from convnext import tasks
from convnext.data.sampling.order import EpochOrder
from convnext.data.sources import scenes
from convnext.recipe import load_recipe
from convnext.tasks.shared import draw_of

CLASSES = ["ant", "bee", "wasp"]
PRESENT = [[0], [0, 1], [0], [0], [], [0, 2], [0], [0], [0], [0]]


def drawn(*overrides):
    recipe = load_recipe("detect_digits", list(overrides))
    return draw_of(recipe, CLASSES, lambda: PRESENT)


def test_a_run_reports_what_is_repeated_or_that_nothing_is():
    assert drawn() == (None, [])
    draw, (line,) = drawn("data.sampler=repeat_factor", "data.repeat_threshold=0.4")
    assert line == (
        "data.sampler=repeat_factor: 2 images of 10 with classes in less than 40 % of them come more often, up to 2.0 times as often (class bee)"
    )
    assert len(draw(10, np.random.default_rng(0))) == 12
    draw, (line,) = drawn("data.sampler=repeat_factor")
    assert draw is None
    assert line.startswith("data.sampler=repeat_factor repeats no image: every class is in at least 0.1 % of the images")
    draw, lines = drawn("data.sampler=balanced")
    assert lines == []
    assert np.bincount(draw(40, np.random.default_rng(0)) % 10)[[1, 4, 5]].min() >= 10


@pytest.mark.parametrize(("recipe", "key"), [("segment_digits", "segment"), ("detect_digits", "detect")])
def test_detectors_and_segmenters_hand_their_draw_to_the_order(recipe, key, monkeypatch):
    monkeypatch.setitem(scenes.PARTS, "train", 40)
    monkeypatch.setitem(scenes.PARTS, "val", 2)
    found = tasks.get(key).open(load_recipe(recipe, ["data.sampler=repeat_factor", "data.repeat_threshold=0.5"]))
    assert [line for line in found.remarks if line.startswith("data.sampler=repeat_factor: ")]
    indices = [index for batch in EpochOrder(40, 8, 0, groups=found.groups, draw=found.draw) for _, index in batch]
    assert len(indices) == 40
    assert max(indices) >= 40  # a repeat


def test_multilabel_draws_by_the_classes_of_each_image(tmp_path):
    image_folder(tmp_path / "photos", each=3)
    (tmp_path / "labels.csv").write_text(
        "image,label\n"
        + "\n".join(f"photos/{name}/{i:03d}.jpg,{'ant bee' if name == 'ant' and i == 0 else name}" for name in CLASSES for i in range(3))
    )
    recipe = load_recipe(
        "multilabel_digits",
        {"data.train": str(tmp_path / "labels.csv"), "data.val": str(tmp_path / "labels.csv"), "data.sampler": "balanced"},
    )
    found = tasks.get("multilabel").open(recipe)
    assert len(found.draw(9, np.random.default_rng(0))) == 9
