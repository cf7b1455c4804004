"""Regression: loss, metric, and a run from training to predictions."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command import run
from helpers import image_folder
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from timm.data import Mixup

import convnext
from convnext import tasks
from convnext.data.randomness import seed_numpy
from convnext.data.sources.digits import DigitValues, open_digit_values
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import load_recipe
from convnext.tasks.base import TaskData
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.regress.data import open_numbers
from convnext.tasks.regress.metric import RegressMetric
from convnext.tasks.regress.prediction import values_of

UNIT = (40.0, 10.0)
TINY = {
    "data.train": "digit-values:val", "model.depths": [1, 1, 1, 1], "model.widths": [8, 8, 16, 16], "model.drop_path": 0,
    "train.epochs": 2, "train.warmup_epochs": 0,
}  # fmt: skip


def batch():
    generator = torch.Generator().manual_seed(0)
    targets = 40 + 10 * torch.randn(8, 1, generator=generator)
    return ClassifyBatch(torch.randn(8, 3, 16, 16, generator=generator), targets, list(range(8)), [])


def model_of(images):
    return images.mean((1, 2, 3))[:, None] * 5


def criterion(**keys):
    recipe = load_recipe("regress_digits", {key.replace("__", "."): value for key, value in keys.items()})
    return tasks.get("regress").criterion(recipe, TaskData([], [], ["value"], [], how=ClassifyPreprocessing(unit=UNIT)))


@pytest.mark.parametrize(("name", "wanted"), [(None, F.smooth_l1_loss), ("mse", F.mse_loss)])
def test_losses_count_in_standard_deviations(name, wanted):
    found = criterion(train__loss=name)(model_of, batch())["loss"]
    assert torch.allclose(found, wanted(model_of(batch().images), (batch().labels - 40) / 10))


def test_mixed_images_have_the_mix_of_their_numbers():
    seed_numpy(4)
    found = criterion(augment__mixup=0.8, train__loss="mse")(model_of, batch())["loss"]
    seed_numpy(4)
    images, fractions = Mixup(0.8, label_smoothing=0, num_classes=8)(batch().images.clone(), torch.arange(8))
    numbers = fractions[0, 0] * batch().labels + (1 - fractions[0, 0]) * batch().labels.flip(0)
    assert torch.allclose(found, F.mse_loss(model_of(images), (numbers - 40) / 10), atol=1e-6)


def test_outputs_are_turned_into_the_unit_of_the_data_and_averaged_with_the_mirror_image():
    images = batch().images
    how = ClassifyPreprocessing(unit=UNIT)
    weights = torch.linspace(0, 1, 16)

    def model(x):
        return (x * weights).mean((1, 2, 3))[:, None]

    assert torch.allclose(values_of(model, images, how), 40 + 10 * model(images))
    found = values_of(model, images, tasks.get("regress").mirrored(how))
    assert torch.allclose(found, 40 + 5 * (model(images) + model(images.flip(-1))))


class Source:
    """Names of images that are not there."""

    def name(self, index):
        return f"image {index}"


def test_the_metric_equals_scikit_learn_in_any_parts():
    rng = np.random.default_rng(0)
    true, predicted = rng.standard_normal((2, 50)).astype(np.float32) * 10 + 30
    metric, other = RegressMetric(Source()), RegressMetric(Source())
    for one, part in ((metric, slice(20, 50)), (other, slice(0, 20))):
        targets = torch.from_numpy(true[part])[:, None]
        one.update(torch.from_numpy(predicted[part])[:, None].unbind(), ClassifyBatch(targets, targets, list(range(50))[part], []))
    metric.merge(other)
    found = metric.compute()
    assert found["r2"] == pytest.approx(100 * r2_score(true, predicted), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(true, predicted))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(true, predicted))
    worst = metric.details()["mistakes"][0]
    assert worst["index"] == int(np.abs(true - predicted).argmax())
    assert (worst["image"], worst["true"]) == (f"image {worst['index']}", pytest.approx(float(true[worst["index"]])))


def test_a_run_from_training_to_an_exported_file(tmp_path, capsys):
    folder = tmp_path / "run"
    result = convnext.train("regress_digits", TINY | {"eval.best_by": "mae"}, output=folder, device="cpu")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert result.best == min(line["mae"] for line in lines if line["kind"] == "eval")
    err = capsys.readouterr().err
    assert "train: 360 images, 360 numbers: values from 0 to 9, mean " in err
    assert "best mean absolute error " in err
    assert "Largest errors" in (folder / "report.html").read_text("utf-8")
    found = json.loads(run("eval", folder, "--workers", "0", "--json").stdout)
    assert found["mae"] == pytest.approx(result.best, rel=1e-4)
    assert run("eval", folder, "--data", "digit-values:val", "--workers", "0", "--tta", "flip").stdout.startswith("R² ")
    open_digit_values("digit-values:val").read(0).save(tmp_path / "digit.png")
    (answer,) = json.loads(run("predict", folder, tmp_path / "digit.png", "--json").stdout)
    assert -3 < answer["value"] < 12  # not in standard deviations
    run("predict", folder, tmp_path / "digit.png", "--output", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "image,row,rows,value,error"
    convnext.export(folder, "safetensors", tmp_path / "exported.safetensors")
    again = convnext.load(tmp_path / "exported.safetensors", device="cpu")
    assert again(tmp_path / "digit.png").to_json() == {"value": pytest.approx(answer["value"])}
    explained = run("explain", folder, tmp_path / "digit.png", "--output", tmp_path / "why")
    assert "skipped" not in explained.stderr
    assert (tmp_path / "why" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_file_for_another_runtime_predicts_in_the_unit_of_the_data(tmp_path, to):
    pytest.importorskip("onnxruntime" if to == "onnx" else "openvino")
    convnext.train("regress_digits", TINY, output=tmp_path / "run", device="cpu")
    file = tmp_path / ("net.onnx" if to == "onnx" else "net.xml")
    convnext.export(tmp_path / "run", to, file)
    image = open_digit_values("digit-values:val").read(0)
    one, other = (convnext.load(source, device="cpu")(image).to_json() for source in (tmp_path / "run", file))
    assert other == {"value": pytest.approx(one["value"], abs=1e-3)}
    assert json.loads(run("eval", file, "--data", "digit-values:val", "--json").stdout)["count"] == 360


def test_data_without_numbers_are_refused(tmp_path, monkeypatch):
    where = str(image_folder(tmp_path / "photos", each=2))
    with pytest.raises(UsageError, match="has classes, and task regress learns a number for each image"):
        open_numbers(where)
    monkeypatch.setattr(DigitValues, "label", lambda self, index: 1.0)
    with pytest.raises(ConvnextError, match=r"all numbers of data\.train are equal"):
        tasks.get("regress").open(load_recipe("regress_digits"))
    monkeypatch.setattr(DigitValues, "label", lambda self, index: float("nan") if index == 3 else 1.0)
    with pytest.raises(ConvnextError, match=r"the value of digit \d+ is nan"):
        open_numbers("digit-values:val")


def test_images_are_held_out():
    data = tasks.get("regress").open(load_recipe("regress_digits", {"data.train": "digit-values:val", "data.val": None}))
    assert (len(data.train) + len(data.val), data.classes) == (360, ["value"])
    assert 40 < len(data.val) < 110


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.label_smoothing": 0.2}, "task regress does not use it"),
        ({"train.class_weights": "balanced"}, "task regress does not use it, only classify"),
        ({"eval.best_by": "top1"}, "task regress has no metric 'top1'; known: r2, mae, rmse"),
    ],
)
def test_keys_of_other_tasks_are_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("regress_digits", keys)
