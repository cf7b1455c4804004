"""Whole runs, small: what they leave, that they repeat, that they continue where they stopped, and what stops them."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import image_folder
from safetensors.torch import load_file

import convnext
from convnext.errors import ConvnextError, UsageError

SMALL = {
    "model.name": "convnext_atto",
    "model.depths": [1, 1, 1, 1],
    "model.widths": [8, 16, 24, 32],
    "data.image_size": 32,
    "data.workers": 0,
    "train.epochs": 3,
    "train.warmup_epochs": 1,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.ema": 0.9,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "photos", each=12)


def small(photos, output, more=None, **how):
    return convnext.train("digits", SMALL | {"data.train": str(photos), "data.val": str(photos)} | (more or {}), output=output, **how)


def same_weights(a, b):
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    small(photos, folder)
    return folder


def test_a_run_leaves_what_the_design_says(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "last.safetensors", "best.safetensors",
        "evaluation.json", "report.html",
    }  # fmt: skip
    assert len(list((whole / "checkpoints").iterdir())) == 2
    lines = metrics(whole)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [3]
    page = (whole / "report.html").read_text()
    assert all(title in page for title in ("Course of the run", "Confusion", "Scores by class", "Recipe", "What it ran on"))
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_same_recipe_gives_the_same_bits_whatever_the_workers(photos, whole, tmp_path, workers):
    small(photos, tmp_path / "run", {"data.workers": workers})
    assert same_weights(tmp_path / "run" / "last.safetensors", whole / "last.safetensors")
    assert metrics(tmp_path / "run") == metrics(whole)


def test_the_callers_generators_are_left_as_they_were(photos, tmp_path):
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(7), np.random.seed(7), torch.manual_seed(7)

    seed()
    expected = draws()
    seed()
    small(photos, tmp_path / "run", {"train.epochs": 1})
    assert draws() == expected
    seed()
    with pytest.raises(ConvnextError, match="the loss is"):
        small(photos, tmp_path / "bad", {"optim.lr": 1e30, "train.warmup_epochs": 0, "train.epochs": 20})
    assert draws() == expected


def test_another_seed_gives_other_weights(photos, whole, tmp_path):
    small(photos, tmp_path / "run", {"seed": 1})
    assert not same_weights(tmp_path / "run" / "last.safetensors", whole / "last.safetensors")


def cli(*arguments):
    return [sys.executable, "-m", "convnext", *map(str, arguments)]


def overrides(photos, more=None):
    values = SMALL | {"data.train": str(photos), "data.val": str(photos)} | (more or {})
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def wait_for_steps(folder, steps, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count('"train"') >= steps:
            return
        time.sleep(0.005)
    raise AssertionError(f"not {steps} steps in time: {process.communicate()}")


LONG = {"train.epochs": 30, "train.eval_every": 30, "data.workers": 2}


@pytest.fixture(scope="module")
def calm(photos, tmp_path_factory):
    """A longer run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "calm"
    small(photos, folder, LONG)
    return folder


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_an_interrupted_run_continues_to_the_same_bits(photos, calm, tmp_path, number, capsys):
    """SIGINT and SIGTERM reach the decoding workers too, as from a terminal or a cluster; compared with a run left alone."""
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        cli("train", "digits", *overrides(photos, LONG), "--output", cut),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_steps(cut, 22, process)
    os.kill(process.pid, number) if number == signal.SIGKILL else os.killpg(process.pid, number)
    message = process.communicate(timeout=60)[1]
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130
        assert "resume with the same command and --resume" in message
    assert not (cut / "report.html").exists()
    small(photos, cut, LONG, resume=True)
    assert "resumed after step" in capsys.readouterr().err
    assert same_weights(cut / "last.safetensors", calm / "last.safetensors")
    assert metrics(cut) == metrics(calm)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_the_end_is_the_same_to_the_bit(tmp_path):
    """Digits, EMA, mixup, accumulation, two workers: SIGKILL wherever it may fall, start-up, saving and evaluation included."""
    recipe = ["digits", "train.epochs=8", "train.warmup_epochs=1", "train.ema=0.99", "augment.mixup=0.8", "train.device_batch_size=32"]
    recipe += ["data.workers=2", "train.checkpoint_every=2", "train.log_every=1", "train.eval_every=1"]
    calm, cut = tmp_path / "calm", tmp_path / "cut"
    subprocess.run(cli("train", *recipe, "--output", calm), check=True, capture_output=True)
    rng, kills = random.Random(0), 0
    while kills < 20:
        process = subprocess.Popen(cli("train", *recipe, "--output", cut, "--resume"), stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(4, 9))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        assert process.wait() in (0, -9)
    subprocess.run(cli("train", *recipe, "--output", cut, "--resume"), check=True, capture_output=True)
    assert same_weights(cut / "last.safetensors", calm / "last.safetensors")
    assert same_weights(cut / "best.safetensors", calm / "best.safetensors")
    states = [torch.load(max((run / "checkpoints").iterdir()), weights_only=True) for run in (calm, cut)]
    assert all(torch.equal(states[0]["ema"][key], states[1]["ema"][key]) for key in states[0]["ema"])
    assert metrics(cut) == metrics(calm)


def test_a_changed_recipe_continues_only_with_change(photos, tmp_path, capsys):
    small(photos, tmp_path / "run")
    with pytest.raises(UsageError, match="train.epochs was 3, now 4; add --change"):
        small(photos, tmp_path / "run", {"train.epochs": 4}, resume=True)
    small(photos, tmp_path / "run", {"train.epochs": 4}, resume=True, change=True)
    assert "resumed after step 12" in capsys.readouterr().err
    assert metrics(tmp_path / "run")[-1]["epoch"] == 4
    assert "epochs: 4" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_skipped_steps_are_reported_and_a_run_of_nothing_else_stops(photos, tmp_path, capsys):
    diverges = {"optim.lr": 1e30, "train.warmup_epochs": 20, "train.warmup_steps": 0, "train.epochs": 20, "train.nonfinite": "skip"}
    with pytest.raises(ConvnextError, match="the loss is .*; this was so in 10 steps in a row; .*lengthen train.warmup_steps$"):
        small(photos, tmp_path / "run", diverges)
    assert "step skipped (9 so far)" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_never_saved(photos, tmp_path, monkeypatch):
    from convnext.training.state import State

    step = State.is_finite

    def broken(state):
        next(state.model.parameters()).data[0] = math.nan
        return step(state)

    monkeypatch.setattr(State, "is_finite", broken)
    message = "weights are not finite after step 4 and were not saved; last good checkpoint: none yet.*warmup_epochs$"
    with pytest.raises(ConvnextError, match=message):
        small(photos, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_recomputing_activations_changes_nothing(photos, tmp_path):
    for name, on in (("kept", False), ("recomputed", True)):
        small(photos, tmp_path / name, {"model.grad_checkpointing": on, "model.drop_path": 0.2})
    assert same_weights(tmp_path / "kept" / "last.safetensors", tmp_path / "recomputed" / "last.safetensors")


def test_a_recipe_for_another_number_of_classes_is_refused(photos, tmp_path):
    with pytest.raises(ConvnextError, match="has 3 classes, the recipe is for 1000"):
        small(photos, tmp_path / "run", {"data.num_classes": 1000})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_run_and_leaves_the_checkpoint_before(photos, tmp_path):
    """The kernel refuses to let a file grow past a limit, set so that the second checkpoint is too large for it."""
    code = (
        "import resource, signal, sys; from convnext.training import run; from convnext.training.folder import run_folder; import convnext\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); save, made = run_folder.RunFolder.save_state, []\n"
        "def limited(self, *args):\n"
        "    if made: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "    made.append(save(self, *args))\n"
        "run_folder.RunFolder.save_state = limited\n"
        "sys.argv = ['convnext', *sys.argv[1:]]; from convnext.cli import main; main()\n"
    )
    arguments = ["train", "digits", *overrides(photos), "train.eval_every=3", "--output", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: could not write" in done.stderr
    assert "what was there before is untouched" in done.stderr
    left = list((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in left] == ["step-00000004.pt"]
    resumed = subprocess.run(cli(*arguments, "--resume"), capture_output=True, text=True, check=True)
    assert "resumed after step 4" in resumed.stderr


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(photos, whole, tmp_path, capsys):
    small(photos, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    small(photos, tmp_path / "run", resume=True)
    printed = capsys.readouterr().err
    assert f"{newest.name} is truncated or damaged" in printed
    assert "resumed after step 8" in printed
    assert same_weights(tmp_path / "run" / "last.safetensors", whole / "last.safetensors")


def test_a_folder_that_holds_a_run_is_refused(photos, whole, tmp_path):
    with pytest.raises(UsageError, match="already holds a run: add --resume .* or --overwrite"):
        small(photos, whole)
    with pytest.raises(UsageError, match="begun with another recipe: train.ema was 0.9, now 0.8"):
        small(photos, whole, {"train.ema": 0.8}, resume=True)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        small(photos, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_overwrite_replaces_the_run_alone(photos, tmp_path):
    small(photos, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").touch()
    small(photos, tmp_path / "run", {"train.epochs": 1}, overwrite=True)
    assert (tmp_path / "run" / "notes.txt").exists()
    assert [line["epoch"] for line in metrics(tmp_path / "run") if line["kind"] == "eval"] == [1]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_loss_that_is_not_finite_names_step_images_and_checkpoint(photos, tmp_path):
    with pytest.raises(
        ConvnextError, match=r"the loss is (nan|inf) at step \d+; the batch: .*\.jpg.*last good checkpoint: .*Lower optim.lr"
    ):
        small(photos, tmp_path / "run", {"optim.lr": 1e30, "train.warmup_epochs": 0, "train.epochs": 20})


def test_a_corrupt_image_is_counted_and_listed_and_too_many_stop_the_run(photos, tmp_path):
    root = image_folder(tmp_path / "photos", each=12)
    (root / "bee" / "004.jpg").write_text("not an image")
    with pytest.raises(ConvnextError, match=r"1 of 36 images can't be read, more than 1.0% \(data.max_corrupt\): .*004.jpg"):
        small(root, tmp_path / "strict")
    small(root, tmp_path / "lax", {"data.max_corrupt": 0.05})
    page = (tmp_path / "lax" / "report.html").read_text()
    assert "1 unreadable image skipped" in page
    assert "bee/004.jpg: not an image" in page
    assert json.loads((tmp_path / "lax" / "evaluation.json").read_text())["metrics"]["count"] == 35


def test_without_val_a_part_is_held_out_and_reported(photos, tmp_path, capsys):
    result = small(photos, tmp_path / "run", {"data.val": None})
    held_out = re.search(r"no data.val given: (\d+) of the 36 images are held out", capsys.readouterr().err)
    assert result.metrics["count"] == int(held_out[1])
    assert 3 <= int(held_out[1]) <= 15


def test_a_run_counted_in_iterations_ends_and_is_evaluated_within_an_epoch(photos, tmp_path):
    more = {"train.iterations": 6, "train.warmup_epochs": 0.5, "optim.schedule": "linear", "optim.min_lr": 0}
    small(photos, tmp_path / "run", more)
    lines = metrics(tmp_path / "run")
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 7))
    rates = [line["lr"] / train[2]["lr"] for line in train]
    assert rates == pytest.approx([0, (5 / 6 / 2) / (4 / 6), 1, 3 / 4, 2 / 4, 1 / 4])
    assert [(line["step"], line["epoch"]) for line in lines if line["kind"] == "eval"] == [(6, 2)]  # of four steps an epoch
    again = small(photos, tmp_path / "run", more, resume=True)
    assert metrics(tmp_path / "run") == lines
    assert again.metrics["count"] > 0
