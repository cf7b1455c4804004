"""Watchers, each with the real library where it is installed, away from the network."""

import logging
import sqlite3
import subprocess
import sys

import pytest

from convnext.errors import ConvnextError, UsageError
from convnext.training import watch
from convnext.training.callbacks import Moment
from convnext.training.watch import check_watchers, open_watchers

RECIPE = {"model": {"name": "convnext_atto", "depths": [1, 1, 1, 1]}, "optim": {"lr": 0.001}, "seed": 0}


def train_line(step):
    return {"kind": "train", "step": step, "epoch": step / 4, "loss": 1 / step, "lr": 0.1}


def eval_line(step):
    return {"kind": "eval", "step": step, "epoch": step // 4, "loss": 0.5, "top1": 10.0 * step, "count": 36}


def moment(line=None):
    return Moment(0, 10, 0.0, 0.0, 0.0, None, None, line or {})


def send(watchers, lines):
    for line in lines:
        for watcher in watchers:
            (watcher.on_step if line["kind"] == "train" else watcher.on_evaluation)(moment(line))
    for watcher in watchers:
        watcher.on_step(moment())  # one that is not logged
        watcher.on_end(moment())


def run_folder(tmp_path, name="run"):
    (tmp_path / name).mkdir()
    return tmp_path / name


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_no_names_open_nothing_and_leave_nothing(tmp_path):
    assert open_watchers([], tmp_path, RECIPE) == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_reported_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown watcher 'tensorbord'; did you mean 'tensorboard'\?"):
        check_watchers(["tensorbord"])


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_reported_with_the_remedy(tmp_path, monkeypatch, name):
    for module in [name, *(known for known in sys.modules if known.startswith(("torch.utils.tensorboard", f"{name}.")))]:
        monkeypatch.setitem(sys.modules, module, None)  # as Python does where a package can't be imported
    with pytest.raises(UsageError, match=f"watching with {name} needs its package .*: pip install {name}"):
        open_watchers([name], tmp_path, RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_every_number_at_its_step(tmp_path):
    pytest.importorskip("tensorboard")
    folder = run_folder(tmp_path)
    send(open_watchers(["tensorboard"], folder, RECIPE), [*map(train_line, range(1, 5)), eval_line(4)])
    found = events(folder)
    assert found.keys() == {"train/epoch", "train/loss", "train/lr", "eval/epoch", "eval/loss", "eval/top1", "eval/count"}
    assert found["train/loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 5)]
    assert found["eval/top1"] == [(4, 40.0)]


def test_tensorboard_has_each_step_once_after_a_resume_and_forgets_a_run_that_was_replaced(tmp_path):
    pytest.importorskip("tensorboard")
    folder = run_folder(tmp_path)
    send(open_watchers(["tensorboard"], folder, RECIPE), map(train_line, range(1, 7)))  # killed after 6; the last state is of 4
    send(open_watchers(["tensorboard"], folder, RECIPE, step=4), map(train_line, range(5, 9)))
    assert [step for step, _ in events(folder)["train/loss"]] == list(range(1, 9))
    send(open_watchers(["tensorboard"], folder, RECIPE), map(train_line, range(1, 3)))
    assert [step for step, _ in events(folder)["train/loss"]] == [1, 2]


def test_the_id_is_kept_on_resume_wherever_the_folder_lies_and_new_for_a_new_run(tmp_path):
    pytest.importorskip("tensorboard")
    folder = run_folder(tmp_path)
    send(open_watchers(["tensorboard"], folder, RECIPE), [])
    first = (folder / watch.ID_FILE).read_text()
    folder = folder.rename(tmp_path / "moved")
    send(open_watchers(["tensorboard"], folder, RECIPE, step=4), [])
    assert (folder / watch.ID_FILE).read_text() == first
    send(open_watchers(["tensorboard"], folder, RECIPE), [])
    assert (folder / watch.ID_FILE).read_text() != first


def test_one_that_fails_is_reported_once_and_dropped_and_the_others_continue(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    folder = run_folder(tmp_path)
    good = open_watchers(["tensorboard"], folder, RECIPE)
    (bad,) = open_watchers(["tensorboard"], run_folder(tmp_path, "bad"), RECIPE)
    with caplog.at_level(logging.WARNING, logger="convnext"):
        bad.on_step(moment({"kind": "train", "step": "no number", "loss": 1.0}))
        send([bad, *good], map(train_line, range(1, 4)))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "tensorboard failed and gets no more lines" in caplog.text
    assert [step for step, _ in events(folder)["train/loss"]] == [1, 2, 3]


def test_one_that_cannot_start_is_an_error_that_names_it(tmp_path):
    pytest.importorskip("tensorboard")
    folder = run_folder(tmp_path)
    (folder / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(ConvnextError, match="tensorboard could not be started .*fix that, or train without --watch tensorboard"):
        open_watchers(["tensorboard"], folder, RECIPE, step=1)


def test_wandb_offline_leaves_a_run_of_the_same_id_when_resumed(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run_folder(tmp_path)
    send(open_watchers(["wandb"], folder, RECIPE), [*map(train_line, range(1, 5)), eval_line(4)])
    send(open_watchers(["wandb"], folder, RECIPE, step=4), map(train_line, range(5, 9)))
    run_id = (folder / watch.ID_FILE).read_text().strip()
    written = list(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert written
    content = b"".join(path.read_bytes() for path in written)
    assert b"train/loss" in content
    assert b"eval/top1" in content


def test_trackio_has_a_run_with_every_step_and_says_nothing_on_standard_output(tmp_path):
    """In a process of its own: trackio decides on import where its files lie."""
    pytest.importorskip("trackio")
    run_folder(tmp_path)
    code = f"""
import os, sys
os.environ |= {{"TRACKIO_DIR": {str(tmp_path / "trackio")!r}, "HF_HUB_OFFLINE": "1"}}
from pathlib import Path
from convnext.training.callbacks import Moment
from convnext.training.watch import open_watchers
for begin, end in ((1, 7), (5, 9)):  # killed after 6; the last state is of 4
    (watcher,) = open_watchers(["trackio"], Path({str(tmp_path / "run")!r}), {RECIPE!r}, step=begin - 1)
    for step in range(begin, end):
        line = {{"kind": "train", "step": step, "epoch": step / 4, "loss": 1 / step, "lr": 0.1}}
        watcher.on_step(Moment(step, 8, 0.0, 0.0, 0.0, None, None, line))
    watcher.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        found = connection.execute("SELECT run_name, step FROM metrics ORDER BY step").fetchall()
    run_id = (tmp_path / "run" / watch.ID_FILE).read_text().strip()
    assert found == [(f"run-{run_id}", step) for step in (1, 2, 3, 4, 5, 5, 6, 6, 7, 8)]
