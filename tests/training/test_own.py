"""Networks, datasets, transforms, losses and metrics from outside the package, in whole runs."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from command import run
from own_code import Patches, PlainNet, error, noise, two_parts
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import convnext
from convnext.errors import ConvnextError, UsageError
from convnext.extend import METRICS, TASKS
from convnext.tasks.classify.task import ClassifyTask
from convnext.training.step import TrainStep

TESTS = Path(__file__).parents[1]
SHORT = {
    "data.image_size": 16,
    "data.workers": 0,
    "train.epochs": 2,
    "train.warmup_epochs": 1,
    "train.batch_size": 8,
    "train.ema": 0.9,
    "train.checkpoint_every": 1,
    "train.log_every": 1,
    "train.eval_every": 1,
    "augment.rand_augment": None,
}
NAMED = {
    "model.name": "plain_net",
    "model.width": 6,
    "model.depths": None,
    "model.widths": None,
    "model.drop_path": 0,
    "data.train": "patches:30",
    "data.val": "patches:12",
    "augment.extra": "noise",
    "train.loss": "two_parts",
    "eval.metrics": ["error"],
}


def given(output, net=None, more=None, **how):
    torch.manual_seed(0)
    own = {"model": net or PlainNet(), "train_data": Patches(30, shifts=True), "val_data": Patches(12)}
    own |= {"transform": noise, "loss": two_parts, "metrics": error}
    return convnext.train("digits", SHORT | (more or {}), output=output, **{**own, **how})


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in found]


def same_weights(one, other):
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, and its network, which was trained in place."""
    folder, net = tmp_path_factory.mktemp("runs") / "whole", PlainNet()
    torch.manual_seed(0)
    net.load_state_dict(PlainNet().state_dict())
    given(folder, net)
    return folder, net


def test_a_run_of_given_objects_names_them_and_logs_their_parts(whole):
    folder, net = whole
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["model"]["name"] == "own:model:own_code.PlainNet"
    assert (recipe["data"]["train"], recipe["data"]["val"]) == ("own:train_data:own_code.Patches", "own:val_data:own_code.Patches")
    assert (recipe["train"]["loss"], recipe["eval"]["metrics"]) == ("own:loss:own_code.two_parts", ["own:metrics:own_code.error"])
    last = lines(folder)[-1]
    assert last["error"] == pytest.approx(100 - last["top1"])
    step = next(line for line in lines(folder) if line["kind"] == "train")
    assert step["loss"] == pytest.approx(step["loss_ce"] + step["loss_size"], rel=1e-5)
    assert (folder / "report.html").exists()
    state = load_file(folder / "last.safetensors")
    assert state.keys() == net.state_dict().keys()  # the user's own names
    assert not torch.equal(state["stem.weight"], net.state_dict()["stem.weight"])  # EMA in the file, raw weights in the network


def test_a_stopped_run_of_given_objects_resumes_bit_for_bit(whole, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    original, steps = TrainStep.run, []

    def until_the_fifth(self, *arguments):
        steps.append(0)
        if len(steps) == 5:
            raise StopError
        return original(self, *arguments)

    monkeypatch.setattr(TrainStep, "run", until_the_fifth)
    with pytest.raises(StopError):
        given(tmp_path / "run")
    monkeypatch.setattr(TrainStep, "run", original)
    with pytest.raises(UsageError, match=r"train_data=own_code\.Patches, val_data=.*, loss=.* were given from Python.*train_data=…"):
        convnext.train("digits", SHORT, output=tmp_path / "run", model=PlainNet(), resume=True)
    given(tmp_path / "run", resume=True)
    assert same_weights(whole[0] / "last.safetensors", tmp_path / "run" / "last.safetensors")
    assert lines(whole[0]) == lines(tmp_path / "run")


def test_a_given_network_is_loaded_evaluated_and_exported_with_the_network(whole, tmp_path):
    folder, _ = whole
    with pytest.raises(ConvnextError, match=r"own_code.PlainNet was given from Python .* as network="):
        convnext.load(folder)
    image, _ = Patches(1)[0]
    top = convnext.load(folder, network=PlainNet())(image).top(3)
    with pytest.raises(UsageError, match="were given from Python: say with --data"):
        convnext.evaluate(folder, network=PlainNet(), workers=0)
    found = convnext.evaluate(folder, Patches(12), network=PlainNet(), metrics=error, workers=0).result.metrics
    last = lines(folder)[-1]
    assert found == {key: last[key] for key in found}
    assert "error" in found
    convnext.export(folder, "safetensors", tmp_path / "net.safetensors", network=PlainNet())
    assert convnext.load(tmp_path / "net.safetensors", network=PlainNet())(image).top(3) == top


@pytest.mark.slow
def test_an_exported_file_of_a_given_network_needs_no_network(whole, tmp_path):
    image, _ = Patches(1)[0]
    top = convnext.load(whole[0], network=PlainNet())(image).top(3)
    convnext.export(whole[0], "onnx", tmp_path / "net.onnx", network=PlainNet())
    assert convnext.load(tmp_path / "net.onnx")(image).top(3) == [(name, pytest.approx(p, abs=1e-5)) for name, p in top]


def test_without_val_data_a_part_of_the_given_data_is_held_out(tmp_path):
    found = given(tmp_path, val_data=None, more={"train.epochs": 1})
    assert found.metrics["count"] < 30
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["data"]["val"] is None


class Wrong(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.layer(x)


def fails(*_):
    raise ValueError("odd")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"model": PlainNet}, "model= is an instance of torch.nn.Module, not PlainNet"),
        ({"model": Wrong()}, r"outputs of shape \(8, 5, 16, 16\) for images \(8, 3, 16, 16\), not logits of shape \(8, 3\)"),
        ({"model": PlainNet(4)}, r"outputs of shape \(8, 4\)"),
        ({"train_data": "photos"}, "train_data= is a dataset: give a folder or a name in the recipe's data.train"),
        ({"loss": fails}, r"the loss .*test_own\.fails failed: ValueError: odd"),
        ({"loss": lambda logits, targets: logits}, r"must return a scalar tensor, .* 'loss' is of shape \(8, 3\)"),
        ({"loss": torch.nn.Linear(3, 1)}, "has parameters, which nothing would train"),
        ({"metrics": lambda logits, labels: "good"}, "the metric lambda must return a number"),
        ({"metrics": lambda logits, labels: {"top1": 1}}, "gives 'top1', which the task measures already"),
        ({"metrics": [error, error]}, "two of the metrics have one name"),
        ({"transform": fails}, "the transform .*fails failed: ValueError: odd"),
        ({"transform": lambda image: image[:, :4]}, r"must return an image of shape \(3, 16, 16\)"),
        ({"more": {"model.drop_path": 0.1}}, "model.drop_path says what model= gives"),
        ({"more": {"model.freeze": 1}}, "model.freeze: own:model:.*PlainNet does not say which of its parameters"),
        ({"more": {"data.train": "digits:train"}}, "data.train says what train_data= gives"),
        ({"more": {"task": "detect", "data.image_size": 224}}, "has no effect on the task 'detect'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(own, message, tmp_path):
    with pytest.raises(ConvnextError, match=message):
        given(tmp_path / "run", **own)


# By name


def named(output, more=None, **how):
    return convnext.train("digits", SHORT | NAMED | (more or {}), output=output, **how)


def description(file):
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["convnext"])


def test_names_and_references_are_like_any_other(tmp_path):
    named(tmp_path / "run", {"train.epochs": 1, "train.loss": "own_code:two_parts", "eval.metrics": ["error", f"{__name__}:share"]})
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["imports"] == ["own_code"]
    assert description(tmp_path / "run" / "best.safetensors")["imports"] == ["own_code"]
    assert {"error", "share_0", "share_1"} <= lines(tmp_path / "run")[-1].keys()
    evaluated = json.loads(run("eval", tmp_path / "run", "--json", "--workers", "0").stdout)
    last = lines(tmp_path / "run")[-1]
    assert [evaluated[key] for key in ("top1", "error", "share_0", "share_1")] == [
        last[key] for key in ("top1", "error", "share_0", "share_1")
    ]


def test_a_callback_by_name_stops_the_run_and_may_be_left_out_when_it_is_resumed(tmp_path):
    result = named(tmp_path / "run", {"train.epochs": 1, "train.callbacks": ["until"], "train.loss": None})
    assert (result.step, result.stopped) == (2, "two steps")
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["train"]["callbacks"] == ["until"]
    result = named(tmp_path / "run", {"train.epochs": 1, "train.loss": None}, resume=True)
    assert (result.step, result.stopped) == (3, None)


def share(logits, labels):
    return {f"share_{i}": (labels == i).float().mean() for i in (0, 1)}


def test_a_task_from_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(TASKS, "entries", dict(TASKS.entries))
    monkeypatch.setattr(TASKS, "origins", dict(TASKS.origins))

    @convnext.register_task("sorting")
    class SortingTask(ClassifyTask):
        name = "sorting"
        headline = "error"

    named(tmp_path / "run", {"train.epochs": 1, "task": "sorting"})
    assert convnext.load(tmp_path / "run").task == "sorting"
    assert description(tmp_path / "run" / "best.safetensors")["imports"] == ["own_code", __name__]
    assert convnext.evaluate(tmp_path / "run", "patches:6", workers=0).task.headline == "error"
    del TASKS.entries["sorting"]
    with pytest.raises(ConvnextError, match=f"for the task 'sorting', which is not known here; add --import own_code --import {__name__}"):
        convnext.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train.loss": "two_part"}, "train.loss: unknown loss 'two_part'; did you mean 'two_parts'"),
        ({"eval.metrics": ["eror"]}, "eval.metrics: unknown metric 'eror'"),
        ({"augment.extra": "nois"}, "unknown transform 'nois'; did you mean 'noise'"),
        ({"train.callbacks": ["untl"]}, "train.callbacks: unknown callback 'untl'; did you mean 'until'"),
        ({"train.callbacks": ["own_code:error"]}, "train.callbacks: own_code:error must be a class that extends convnext.Callback"),
        ({"task": "clasify"}, "unknown task 'clasify'; did you mean 'classify'"),
        ({"model.name": "plain_nett"}, "unknown model 'plain_nett'; did you mean 'plain_net'"),
        ({"train.loss": "own_code:two_part"}, "own_code has no 'two_part'; did you mean 'two_parts'"),
        ({"train.loss": "no such"}, "unknown loss 'no such'"),
        ({"train.loss": "nowhere.losses:one"}, "no module 'nowhere.losses'"),
        ({"imports": ["nowhere"]}, "no module 'nowhere'"),
        ({"model.heads": 3}, "unknown key 'model.heads'"),
    ],
)
def test_a_misspelt_name_is_refused_before_anything_is_written(more, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        named(tmp_path / "run", more)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_says_which_metric_of_the_run_it_can_not_measure(tmp_path, monkeypatch):
    named(tmp_path / "run", {"train.epochs": 1})
    monkeypatch.setattr(METRICS, "entries", {})
    found = convnext.evaluate(tmp_path / "run", "patches:6", workers=0)
    assert "error" not in found.result.metrics
    assert "the run's metric error is not measured: unknown metric 'error'" in found.to_text()


# The whole chain, in other processes


def command(*arguments):
    return [sys.executable, "-m", "convnext", *map(str, arguments)]


@pytest.mark.slow
def test_from_a_killed_run_to_a_service(tmp_path):
    """A module that lies in the current folder: train, kill, resume, evaluate, predict, export and serve."""
    (tmp_path / "mine.py").write_text((TESTS / "own_code.py").read_text())
    keys = [f"{key}={json.dumps(value)}" for key, value in (SHORT | NAMED | {"train.epochs": 30}).items()]

    def convnext_(*arguments, code=0):
        done = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    convnext_("train", "digits", *keys, "--import", "mine", "--output", "whole")
    process = subprocess.Popen(command("train", "digits", *keys, "--import", "mine", "--output", "run"), cwd=tmp_path)
    while not list((tmp_path / "run").glob("checkpoints/*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    convnext_("train", "run/recipe.yaml", "--output", "run", "--resume")  # which names the module that it needs
    assert same_weights(tmp_path / "whole" / "last.safetensors", tmp_path / "run" / "last.safetensors")
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")

    assert "holds a plain_net, which is not known here; add --import mine" in convnext_("eval", "run", code=1)
    assert "error" in convnext_("eval", "run", "--import", "mine")
    Image.fromarray(Patches(1)[0][0]).save(tmp_path / "image.png")
    top = convnext_("predict", "run", "image.png", "--import=mine")
    convnext_("--import", "mine", "export", "run", "--to", "onnx", "--output", "net.onnx")
    assert convnext_("predict", "net.onnx", "image.png").split()[1:] == top.split()[1:]  # the graph needs no module
    service = subprocess.Popen(
        command("serve", "torch=run", "onnx=net.onnx", "--port", "0", "--import", "mine"), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in service.stderr if "http://" in line)
        address = line.split()[-1]
        for name in ("torch", "onnx"):
            request = urllib.request.Request(f"{address}/predict?model={name}", data=(tmp_path / "image.png").read_bytes())
            with urllib.request.urlopen(request) as answer:
                assert top.split()[1] in answer.read().decode()
    finally:
        service.terminate()
        service.wait()
