"""What happens around the steps: evaluation and its memory, the EMA, numbers that are not finite."""

import io
import json
import math

import pytest
import torch
from helpers import image_folder
from rich.console import Console

import convnext
from convnext.errors import ConvnextError
from convnext.evaluate import evaluate_loaded
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.backbones.roadmap import RoadmapNet
from convnext.models.load import load
from convnext.models.weights.files import read_weights
from convnext.recipe import load_recipe
from convnext.tasks.classify.metric import ClassifyMetric
from convnext.tasks.classify.task import ClassifyTask
from convnext.training.folder.run_folder import RunFolder
from convnext.training.loop import Trainer
from convnext.training.progress.display import Display
from convnext.training.state import ema_decay, new_state

TINY = {
    "model.depths": [1, 1, 1, 1],
    "model.widths": [4, 4, 8, 8],
    "model.drop_path": 0.0,
    "data.workers": 0,
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.batch_size": 8,
    "augment.rand_augment": None,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "photos")


def tiny(photos, output, more, **how):
    return convnext.train("digits", TINY | {"data.train": str(photos), "data.val": str(photos)} | more, output=output, **how)


def evaluations(run):
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "eval"]


@pytest.fixture
def room():
    """Memory, on this CPU, for so many images at a time in evaluation; gives the list of all batch sizes tried.

    A global hook of PyTorch's, because evaluation makes its batches inside a run.
    """
    tried, most = [], [3]

    def check(module, inputs):
        if isinstance(module, ConvNeXt) and not module.training:
            tried.append(len(inputs[0]))
            if len(inputs[0]) > most[0]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(check)
    yield tried, most
    handle.remove()


def test_an_evaluation_that_needs_too_much_memory_is_done_in_halves(photos, tmp_path, room):
    tried, most = room
    halved = tiny(photos, tmp_path / "halved", {"train.ema": 0.5})
    assert tried[:5] == [24, 12, 6, 3, 3]
    assert max(tried[5:]) == 3  # larger parts are not tried again, in the next evaluations either
    assert len(tried) == 3 + 2 * 8  # of the EMA weights and the raw ones
    most[0] = 100
    whole = tiny(photos, tmp_path / "whole", {"train.ema": 0.5})
    assert halved.metrics == pytest.approx(whole.metrics)
    assert halved.metrics["count"] == 24


def test_evaluation_has_a_batch_of_its_own(photos, tmp_path, room):
    """It is the task's, 32 images for a classifier, whatever the training takes at a time."""
    tried, most = room
    most[0] = 100
    for more in ({"train.device_batch_size": 3}, {"train.batch_size": 2}):
        tiny(photos, tmp_path / str(len(tried)), more)
        assert tried[-1] == 24  # all there are
    assert ClassifyTask.batch_size == 32


def test_where_one_image_is_too_much_a_remedy_is_named(photos, tmp_path, room):
    tried, most = room
    most[0] = 0
    with pytest.raises(ConvnextError, match="cpu has too little memory for one image: use smaller ones"):
        tiny(photos, tmp_path / "run", {})
    assert tried == [24, 12, 6, 3, 2, 1]


def test_eval_of_a_finished_run_halves_as_well(photos, tmp_path, room):
    tried, _ = room
    whole = tiny(photos, tmp_path / "run", {"train.device_batch_size": 2})
    del tried[:]
    found = evaluate_loaded(load(tmp_path / "run"), None, 16, 0, 0.01, torch.device("cpu"))
    assert tried[:4] == [16, 8, 4, 2]
    assert found.result.metrics == pytest.approx(whole.metrics)


def test_eval_of_a_run_whose_classes_changed_is_refused(tmp_path):
    root = image_folder(tmp_path / "photos")
    tiny(root, tmp_path / "run", {})
    (root / "wasp").rename(root / "aawasp")
    with pytest.raises(ConvnextError, match="classes of the validation data of .* changed since the run: aawasp, ant, bee now"):
        evaluate_loaded(load(tmp_path / "run"), None, 16, 0, 0.01, torch.device("cpu"))


# The moving average


def test_the_emas_decay_warms_up():
    assert [ema_decay(n, 0.999) for n in (0, 1, 90)] == [0.1, 2 / 11, 0.91]
    assert ema_decay(8989, 0.999) < ema_decay(8991, 0.999) == ema_decay(10**9, 0.999) == 0.999


def test_the_moving_average_is_timms_warmed_up():
    """Against timm's own, whose warm-up with gamma 9 and power 1 is (1 + n) / (10 + n), counted from one."""
    from timm.utils import ModelEmaV3

    model = convnext.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), widths=(4, 4, 4, 4), layer_scale=1.0)
    state = new_state(model, load_recipe("digits", {"train.ema": 0.6}), torch.device("cpu"))
    theirs = ModelEmaV3(model, decay=0.6, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
    for n in range(20):
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        state.ema.update_parameters(model)
        theirs.update(model, step=n + 2)
        pairs = zip(state.ema_or_model.parameters(), theirs.module.parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.slow
def test_a_short_run_with_an_ema_is_as_good_as_its_raw_weights(tmp_path):
    """With a decay of 0.999 as it stands, most of the average of 132 steps would be the initial weights."""
    small = {
        "train.epochs": 3,
        "train.warmup_epochs": 0.5,
        "train.eval_every": 3,
        "train.ema": 0.999,
        "optim.lr": 4e-3,
        "train.batch_size": 32,
    }
    small |= {"model.depths": [1, 1, 1, 1], "model.widths": [12, 24, 36, 48], "augment.rand_augment": None, "augment.random_erasing": 0.0}
    result = convnext.train("digits", small, output=tmp_path / "run")
    found = evaluations(tmp_path / "run")[-1]
    assert result.metrics == {key: found[key] for key in result.metrics}
    assert found["raw_top1"] > 70
    assert found["top1"] > found["raw_top1"] - 5
    assert found["raw_loss"] != found["loss"]
    assert result.best == found["top1"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{found['raw_top1']:.2f}\N{NO-BREAK SPACE}%" in page
    assert "top-1 accuracy of the raw weights" in page
    description = read_weights(tmp_path / "run" / "best.safetensors")[1]
    assert description["metrics"]["top1"] == found["top1"]


def test_both_accuracies_are_reported_and_without_ema_one(photos, tmp_path, capsys):
    tiny(photos, tmp_path / "ema", {"train.ema": 0.9})
    assert "with the EMA weights" in capsys.readouterr().err
    tiny(photos, tmp_path / "none", {})
    assert "EMA" not in capsys.readouterr().err
    assert not any(key.startswith("raw_") for key in evaluations(tmp_path / "none")[-1])


# Numbers that are not finite


@pytest.fixture
def burst():
    """Inputs of a network in training that are inf, in its third forward pass."""
    count = [0]

    def spoil(module, inputs):
        if isinstance(module, RoadmapNet) and module.training:
            count[0] += 1
            if count[0] == 3:
                inputs[0][0, 0, 0, 0] = math.inf

    handle = torch.nn.modules.module.register_module_forward_pre_hook(spoil)
    yield count
    handle.remove()


def test_a_skipped_batch_leaves_a_batch_norm_networks_weights_finite(photos, tmp_path, burst, capsys):
    more = {"model.name": "roadmap_t_01_modern_training", "model.width": 8, "model.widths": None, "train.epochs": 2}
    result = tiny(photos, tmp_path / "run", more | {"train.nonfinite": "skip", "train.ema": 0.9})
    assert burst[0] == 6
    assert "step skipped (1 so far)" in capsys.readouterr().err
    assert math.isfinite(result.metrics["loss"])
    for name in ("last", "best"):
        weights = read_weights(tmp_path / "run" / f"{name}.safetensors")[0]
        assert any("running_var" in key for key in weights)
        assert all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point())


class UndefinedMetric(ClassifyMetric):
    """A metric without a value, as mean IoU without a class."""

    def compute(self):
        return super().compute() | {"share": math.nan}


class UndefinedTask(ClassifyTask):
    """A task whose headline has no value."""

    headline = "share"

    def metric(self, num_classes, source):
        return UndefinedMetric(num_classes, source)


def test_a_headline_that_is_no_number_is_never_the_best(photos, tmp_path):
    recipe = load_recipe("digits", TINY | {"data.train": str(photos), "data.val": str(photos)})
    model = convnext.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), widths=(4, 4, 8, 8))
    folder, shown, device = RunFolder(tmp_path / "run"), io.StringIO(), torch.device("cpu")
    folder.begin(recipe, device)
    task = UndefinedTask()
    state = new_state(model, recipe, device)
    Trainer(state, task, task.open(recipe), recipe, folder, device, Display(Console(file=shown))).fit()
    assert "share is nan: these weights do not become the best" in shown.getvalue()
    assert state.best == -math.inf
    assert folder.last.exists()
    assert not folder.best.exists()
