"""What a detector's recipe leaves to the data."""

import json

import numpy as np
import pytest
import torch
from helpers import sample_image
from torchvision.ops import box_iou

import convnext
from convnext import tasks
from convnext.models.detection import anchors
from convnext.recipe import load_recipe
from convnext.tasks.detect import auto

TINY = {"model.width": 8, "model.depths": [1, 1, 1, 1], "model.channels": 16, "model.fc_channels": 32, "data.workers": 0}


@pytest.fixture
def boxes(tmp_path):
    """Four images of 40 x 48 pixels with two boxes each."""
    folder = tmp_path / "data"
    folder.mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 40} for i in range(4)]
    found = [{"id": 2 * i + j, "image_id": i, "category_id": 1, "bbox": [4, 4, 9 + 9 * j, 20]} for i in range(4) for j in range(2)]
    for image in images:
        sample_image(image["id"], (40, 48)).save(folder / image["file_name"])
    values = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "boxes.json").write_text(json.dumps(values))
    return dict.fromkeys(("data.train", "data.val"), f"coco:{folder}/boxes.json:{folder}")


@pytest.mark.parametrize(
    ("side", "image", "expected"),
    [(0.125, 640, 288), (0.125, 200, 192), (0.01, 4000, 448), (0.9, 640, 224), (0.9, 160, 160), (0.5, 64, 128)],
)
def test_small_objects_get_large_images_within_bounds(side, image, expected):
    objects = np.concatenate([np.full((30, 2), side), np.full((70, 2), 0.95)])
    assert auto.size_for(objects, image) == expected


def test_anchors_fit_the_objects():
    for scale in (2.0, 4.0, 8.0):
        sides = scale * np.array(anchors.STRIDES, float)
        assert auto.anchor_scale_for(np.stack([sides, sides], 1)[[0, 4]]) == scale  # no smaller or larger grid holds both
    middle = np.full((9, 2), 64.0)  # an anchor of each grid fits; the largest grid has it on the finest map
    assert auto.anchor_scale_for(middle) == auto.anchor_scale_for(np.zeros((0, 2))) == 8.0


def test_the_best_anchor_is_that_of_the_grid():
    objects = np.random.default_rng(0).uniform(8, 200, (20, 2))
    centred = torch.cat([torch.tensor(-objects / 2), torch.tensor(objects / 2)], 1).float()
    grid = torch.cat(anchors.grid([(1, 1)] * 5, anchors.STRIDES, torch.device("cpu"), 3.0))
    assert np.allclose(box_iou(centred, grid).amax(1).numpy(), anchors.best_iou(objects, 3.0), atol=1e-5)


def test_fewer_steps_of_larger_images():
    assert auto.steps_for(128) > auto.steps_for(256) > auto.steps_for(384) >= 600


def test_a_run_measures_what_its_recipe_leaves_open_and_resumes(boxes, tmp_path, capsys):
    given = (
        boxes
        | TINY
        | {"train.iterations": 1, "train.warmup_steps": 0, "detect.size": "auto", "model.anchor_scale": "auto", "model.masks": "auto"}
    )
    convnext.train("detect_digits", given, output=tmp_path / "run")
    shown = capsys.readouterr().err
    assert "from the training data: model.masks=false detect.size=128 model.anchor_scale=" in " ".join(shown.split())
    written = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert (written.detect.size, written.model.get("masks")) == (128, False)
    predictor = convnext.load(tmp_path / "run")
    assert (predictor.preprocessing.short, predictor.preprocessing.longest) == (128, 128)
    assert predictor.model.rpn_head.anchor_scale == written.model.get("anchor_scale")
    assert convnext.train("detect_digits", given, output=tmp_path / "run", resume=True).step == 1


def test_the_small_recipe_needs_the_data_alone(boxes):
    data = tasks.get("detect").open(load_recipe("detect_small", boxes))
    assert data.recipe is not None
    assert data.recipe.train.iterations == auto.steps_for(128)
    assert data.recipe.model.get("masks") is False
    assert len(data.remarks) >= 3
