"""The demos' own promises, on the machine at hand."""

import json
import shlex
import subprocess
import sys

import pytest
import typer
from PIL import Image

from convnext import tasks
from convnext.cli.common import app
from convnext.cli.demo import _folder, write_example
from convnext.cli.demo import demo as run_demo
from convnext.data.sources.digits import Digits
from convnext.data.sources.scenes import Scenes
from convnext.errors import UsageError
from convnext.extend import TASKS
from convnext.recipe import load_recipe
from convnext.tasks.classify.task import ClassifyTask


def demo(tmp_path, *arguments):
    done = subprocess.run([sys.executable, "-m", "convnext", "demo", *arguments], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "images/s" in done.stderr
    assert "left" in done.stderr
    run = next((tmp_path / "runs").iterdir())
    names = {path.name for path in run.iterdir()}
    assert {"report.html", "predictions.png", "example.png", "recipe.yaml", "metrics.jsonl", "best.safetensors", "checkpoints"} <= names
    assert "next:\n  convnext " in done.stdout
    following = done.stdout.partition("next:")[2]
    assert f"convnext predict runs/{run.name} runs/{run.name}/example.png" in following
    return done.stdout, json.loads((run / "evaluation.json").read_text())["metrics"]


@pytest.mark.slow
def test_classification_reaches_its_accuracy(tmp_path):
    printed, metrics = demo(tmp_path)
    assert metrics["top1"] >= 98.5
    assert "of 360) on the held-out images" in printed


@pytest.mark.slow
def test_detection_reaches_its_precision(tmp_path):
    printed, metrics = demo(tmp_path, "--task", "detect")
    assert metrics["box_ap"] >= 70
    assert metrics["mask_ap"] >= 60
    assert "(200 images) on the held-out images" in printed


@pytest.mark.slow
def test_segmentation_reaches_its_overlap(tmp_path):
    printed, metrics = demo(tmp_path, "--task", "segment")
    assert metrics["miou"] >= 80
    assert "(200 images) on the held-out images" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric", "least"), [("multilabel", "map", 99), ("regress", "r2", 85)])
def test_labels_and_numbers_reach_what_their_recipes_say(tmp_path, task, metric, least):
    _, metrics = demo(tmp_path, "--task", task)
    assert metrics[metric] >= least


@pytest.mark.slow
def test_pretraining_predicts_better_than_the_mean_and_is_fine_tuned_next(tmp_path):
    printed, metrics = demo(tmp_path, "--task", "pretrain")
    assert metrics["loss"] < 0.25
    command = shlex.split(next(line for line in printed.splitlines() if "convnext train" in line))
    done = subprocess.run(
        [sys.executable, "-m", *command, "train.epochs=1", "train.warmup_epochs=0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert "tensors that the network does not have, ignored: decoder." in done.stderr


def test_every_task_of_the_package_has_a_demo_and_says_what_is_next():
    for name in set(tasks.names()) - set(TASKS.origins):  # another test may have registered one of its own
        task = tasks.get(name)
        assert load_recipe(task.demo_recipe).task == name
        assert task.demo_next
        for command in task.demo_next:
            words = shlex.split(command.format(run="runs/demo"))
            assert words[0] == "convnext"
            typer.main.get_command(app).get_command(None, words[1]).make_context(words[1], words[2:])


@pytest.mark.parametrize("name", tasks.names())
def test_the_example_is_a_held_out_image(name, tmp_path):
    write_example(tasks.get(name), tasks.get(name).demo_recipe, tmp_path / "example.png")
    held_out = Scenes("val") if name in ("detect", "segment") else Digits("val")
    with Image.open(tmp_path / "example.png") as image:
        assert image.tobytes() == held_out.read(0).tobytes()


def test_a_demo_takes_a_free_folder_and_resumes_in_the_last_one(tmp_path):
    first = tmp_path / "demo"
    assert _folder(first, resume=False) == _folder(first, resume=True) == first
    (tmp_path / "demo-detect").mkdir()
    first.mkdir()
    assert (_folder(first, resume=False), _folder(first, resume=True)) == (tmp_path / "demo-2", first)
    (tmp_path / "demo-2").mkdir()
    assert (_folder(first, resume=False), _folder(first, resume=True)) == (tmp_path / "demo-3", tmp_path / "demo-2")


def test_a_task_without_a_demo_says_so(monkeypatch):
    class Own(ClassifyTask):
        demo_recipe = None

    monkeypatch.setitem(TASKS.entries, "without_a_demo", Own)
    with pytest.raises(UsageError, match="the task 'without_a_demo' has no demo"):
        run_demo("without_a_demo")
