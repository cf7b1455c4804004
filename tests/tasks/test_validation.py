"""The loss on validation images: deterministic, by part, and without a trace in training."""

import json

import numpy as np
import pytest
import torch
from helpers import sample_image
from source_files import mask_folder

import convnext
from convnext import tasks
from convnext.errors import UsageError
from convnext.recipe import load_recipe
from convnext.tasks.validation import losses_of

SMALL = {"model.width": 8, "model.depths": [1, 1, 1, 1], "model.channels": 16, "data.workers": 0, "train.log_every": 1}
DETECT = {"model.fc_channels": 32, "model.masks": False, "detect.size": 64, "model.proposals": 50}


@pytest.fixture
def boxes(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(3)]
    found = [{"id": 2 * i + j, "image_id": i, "category_id": 1, "bbox": [4, 4, 9 + 9 * j, 20]} for i in range(3) for j in range(2)]
    for image in images:
        sample_image(image["id"], (64, 48)).save(folder / image["file_name"])
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": found, "categories": [{"id": 1, "name": "thing"}]}))
    return SMALL | DETECT | dict.fromkeys(("data.train", "data.val"), f"coco:{folder}/boxes.json:{folder}")


def lines(run, kind):
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == kind]


def test_a_run_logs_it_and_trains_as_without(boxes, tmp_path):
    length = {"train.iterations": 2, "train.warmup_steps": 0, "train.batch_size": 2, "train.eval_every": 1}
    runs = [tmp_path / "with", tmp_path / "without"]
    for run, more in zip(runs, ({"eval.loss": True, "eval.best_by": "loss"}, {}), strict=True):
        convnext.train("detect_digits", boxes | length | more, output=run)
    assert [line["loss"] for line in lines(runs[0], "train")] == [line["loss"] for line in lines(runs[1], "train")]
    measured, plain = (lines(run, "eval")[-1] for run in runs)
    parts = [key for key in measured if key.startswith("loss_")]
    assert parts == ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"]
    assert measured["loss"] == pytest.approx(sum(measured[part] for part in parts))
    assert measured["box_ap"] == plain["box_ap"]
    assert "loss" not in plain
    assert "Loss by part" in (runs[0] / "report.html").read_text()


def test_of_a_segmenter_it_is_pytorchs_cross_entropy(tmp_path):
    mask_folder(tmp_path)
    data = {"data.train": str(tmp_path), "data.val": str(tmp_path), "model.auxiliary_channels": 8, "eval.loss": True}
    recipe = load_recipe("segment_digits", SMALL | data)
    task = tasks.get("segment")
    opened, how = task.open(recipe), task.preprocessing(recipe)
    model = convnext.create_model(recipe.model.name, num_classes=2, **recipe.model.arguments())
    measure = losses_of(task, recipe, opened, how, task.criterion(recipe, opened), torch.device("cpu"))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = measure(model)
    assert found == measure(model)
    assert model.training
    assert model.backbone.training
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    wanted, source, transform = [], opened.val.source, how.transform()
    with torch.no_grad():
        for i in range(len(source)):
            logits = model.eval()(transform(source.read(i))[None])
            wanted.append(torch.nn.functional.cross_entropy(logits, source.mask(i)[None].long()).item())
    assert found["loss_decode"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    assert found["loss"] == pytest.approx(found["loss_decode"] + found["loss_auxiliary"])


def test_what_has_no_such_loss_says_so():
    with pytest.raises(UsageError, match=r"eval.loss=true has no effect: task classify does not use it, only detect, segment"):
        load_recipe("digits", ["eval.loss=true"])
    with pytest.raises(UsageError, match=r"eval.best_by=loss: .* add eval.loss=true"):
        load_recipe("detect_digits", ["eval.best_by=loss"])


def test_a_detector_stops_early_by_average_precision(boxes, tmp_path):
    length = {"train.iterations": 9, "train.warmup_steps": 0, "train.batch_size": 2, "train.eval_every": 1, "optim.lr": 1e-9}
    result = convnext.train("detect_digits", boxes | length | {"train.patience": 1, "eval.best_by": "box_ap50"}, output=tmp_path / "run")
    *before, last = (line["box_ap50"] for line in lines(tmp_path / "run", "eval"))
    assert before == sorted(set(before))
    assert last <= max(before) == result.best
    assert result.step == len(before) + 1 < 9
    assert "did not improve the best" in str(result.stopped)
