"""The run folder in the hands of several processes, of killed ones, and of people who mistype."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import image_folder

import convnext
import convnext.distributed
from convnext.errors import ConvnextError, UsageError
from convnext.models.weights.files import write_atomically
from convnext.recipe import load_recipe
from convnext.report.runs import read_run
from convnext.training.folder.run_folder import RunFolder
from convnext.training.folder.run_paths import refuse_within_data

SMALL = {
    "model.name": "convnext_atto",
    "model.depths": [1, 1, 1, 1],
    "model.widths": [4, 4, 4, 4],
    "data.image_size": 32,
    "data.workers": 0,
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.batch_size": 8,
    "train.log_every": 1,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "photos", each=4)


def small(photos, output, more=None, **how):
    return convnext.train("digits", SMALL | {"data.train": str(photos), "data.val": str(photos)} | (more or {}), output=output, **how)


def command(photos, output, *more):
    keys = SMALL | {"data.train": str(photos), "data.val": str(photos)}
    overrides = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    return [sys.executable, "-m", "convnext", "train", "digits", *overrides, *more, "--output", str(output)]


def contents(folder):
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def wait_for(condition, process=None, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def steps(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0


# Two processes


def test_a_second_process_is_refused_with_who_holds_the_folder_until_that_one_is_killed(photos, tmp_path):
    run = tmp_path / "run"
    long = ("train.epochs=10000", "train.eval_every=10000", "data.workers=2", "train.checkpoint_every=1")
    first = subprocess.Popen(command(photos, run, *long), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: steps(run) > 2, first)
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match=rf"run is in use by process {first.pid} on {socket.gethostname()} since 20"):
            small(photos, run, **how)
    assert read_run(run).lines  # readers are not held up
    first.kill()
    first.wait()
    # At once: its decoding workers may live for some seconds yet.
    done = steps(run)
    short = {"train.epochs": done + 1, "data.workers": 0, "train.checkpoint_every": None}
    small(photos, run, short, resume=True, change=True)
    first.communicate()
    assert (run / "report.html").exists()
    assert not list(run.glob(".*"))


def test_in_one_process_too_and_a_run_that_ends_gives_the_folder_free(photos, tmp_path):
    with RunFolder(tmp_path / "run").held(print), pytest.raises(UsageError, match=f"in use by process {os.getpid()} "):
        small(photos, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    small(photos, tmp_path / "run")
    small(photos, tmp_path / "run", resume=True)


def test_a_file_in_the_way_of_the_folder_is_named(photos, tmp_path):
    (tmp_path / "notes").touch()
    for output in (tmp_path / "notes", tmp_path / "notes" / "run"):
        with pytest.raises(UsageError, match="can't be a run folder, because a file is in its way"):
            small(photos, output)


# Overwriting


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    small(photos, folder)
    return folder


def copied(finished, to):
    """A copy of a finished run, as it lies in another folder, with something that is not the run's."""
    for name, content in contents(finished).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(content)
    (to / "notes.txt").write_text("mine")
    return contents(to)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"data.image_size": 1}, "too small for this network"),
        ({"optim.lr": 1e30, "train.epochs": 20, "train.batch_size": 4}, "the loss is"),
        ({"data.num_classes": 1000}, "the recipe is for 1000"),
    ],
)
def test_a_run_that_was_to_be_replaced_survives_a_start_that_fails(photos, finished, tmp_path, more, why, capsys):
    before = copied(finished, tmp_path)
    with pytest.raises(ConvnextError, match=why):
        small(photos, tmp_path, more, overwrite=True)
    assert contents(tmp_path) == before
    if "optim.lr" in more:
        assert "the run that was to be replaced is back" in capsys.readouterr().err


def test_it_is_gone_once_the_new_one_has_saved_its_state(photos, finished, tmp_path):
    copied(finished, tmp_path)
    small(photos, tmp_path, {"seed": 5}, overwrite=True)
    assert "seed: 5" in (tmp_path / "recipe.yaml").read_text()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


class Killed(BaseException):
    """Ends the work as a signal would that leaves no time for anything."""


def test_wherever_the_replacing_was_killed_the_old_run_comes_back(finished, tmp_path, monkeypatch):
    """After each of the steps by which it is moved aside, and of those by which it comes back."""
    recipe, device = load_recipe("digits"), convnext.distributed.pick_device("cpu")
    for moves in range(14):
        for returns in (0, 1, 2, 5, 100):
            folder = RunFolder(tmp_path / f"{moves}-{returns}")
            before = copied(finished, folder.path)
            after(monkeypatch, moves, lambda folder=folder: folder.begin(recipe, device))
            after(monkeypatch, returns, lambda folder=folder: folder._put_back(print))
            with folder.held([].append):
                pass
            assert contents(folder.path) == before, (moves, returns)


def after(monkeypatch, count, work):
    """Do the work, killed before one more than `count` files would be moved or removed."""
    left = [count]

    def counting(real):
        def once(*arguments, **more):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments, **more)

        return once

    with monkeypatch.context() as patched:
        for name in ("rename", "unlink", "rmdir", "mkdir"):
            patched.setattr(Path, name, counting(getattr(Path, name)))
        with suppress(Killed):
            work()


# Starts that did not come far


def test_after_a_refused_start_the_corrected_one_is_taken(photos, tmp_path):
    for how in ({}, {"resume": True}):
        run = tmp_path / f"run{len(how)}"
        with pytest.raises(UsageError):
            small(photos, run, {"data.image_size": 1}, **how)
        small(photos, run, {"train.ema": 0.5}, **how)
        assert "ema: 0.5" in (run / "recipe.yaml").read_text()


@pytest.mark.parametrize("left", [("checkpoints",), ("checkpoints", "environment"), ("recipe",), ("checkpoints", "recipe", "environment")])
@pytest.mark.parametrize("how", ["", "resume", "overwrite"])
def test_what_a_killed_start_leaves_is_taken_by_the_next(photos, tmp_path, left, how):
    recipe = load_recipe("digits", {"seed": 9})
    for name in left:
        if name == "checkpoints":
            (tmp_path / "checkpoints").mkdir()
        else:
            (tmp_path / {"recipe": "recipe.yaml", "environment": "environment.json"}[name]).write_text(
                recipe.to_yaml() if name == "recipe" else ""
            )
    (tmp_path / ".lock").touch()
    folder = RunFolder(tmp_path)
    assert not folder.holds_a_run()
    with folder.held(print):
        now = load_recipe("digits", {"seed": 3})
        assert not folder.prepare(how == "resume", how == "overwrite")
        folder.begin(now, convnext.distributed.pick_device("cpu"))
    assert load_recipe(str(tmp_path / "recipe.yaml")).seed == 3


@pytest.mark.parametrize("text", [b"", b"data: {train", b"\xff\xfe"])
def test_a_damaged_recipe_is_reported_with_the_remedies(photos, finished, tmp_path, text):
    copied(finished, tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(text)
    with pytest.raises(UsageError, match=r"recipe.yaml is empty or damaged .*: add --change to resume .* or --overwrite"):
        small(photos, tmp_path, resume=True)
    small(photos, tmp_path, resume=True, change=True)
    assert "epochs: 1" in (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_bytes(text)
    small(photos, tmp_path, overwrite=True)


def test_what_is_somebody_elses_is_not_written_over(photos, tmp_path):
    recipe = "# my own notes on this\n" + load_recipe("digits").to_yaml()
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(UsageError, match="already holds a run"):
        small(photos, tmp_path)
    assert contents(tmp_path) == {"recipe.yaml": recipe.encode()}
    (tmp_path / "recipe.yaml").unlink()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").touch()
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="is not empty and holds no run"):
            small(photos, tmp_path, **how)
    assert (tmp_path / "checkpoints" / "mine.pt").exists()


def test_what_a_killed_save_left_is_removed(photos, finished, tmp_path):
    before = copied(finished, tmp_path)
    for name in ("checkpoints/.step-00000001.pt.12345.tmp", ".best.safetensors.77.tmp", ".recipe.yaml.8.tmp"):
        (tmp_path / name).write_bytes(b"0" * 1000)
    (tmp_path / ".mine.tmp").touch()
    small(photos, tmp_path, resume=True)
    assert contents(tmp_path).keys() == before.keys() | {".mine.tmp"}


SLOW_SAVE = """
import sys, time
from pathlib import Path
from convnext.training.folder.run_folder import RunFolder

class Slow:
    def __reduce__(self):  # in the middle of the file
        print("saving", flush=True)
        time.sleep(600)

import torch
folder = RunFolder(Path(sys.argv[1]))
with folder.held(print):
    folder.save_state({"model": torch.zeros(100_000), "slow": Slow()}, 2, 2)
"""


def test_a_process_killed_while_it_saves_leaves_nothing_that_stays(photos, finished, tmp_path):
    before = copied(finished, tmp_path)
    process = subprocess.Popen([sys.executable, "-c", SLOW_SAVE, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "saving\n"
    process.kill()
    process.wait()
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*.tmp")] == [f".step-00000002.pt.{process.pid}.tmp"]
    small(photos, tmp_path, resume=True)
    assert contents(tmp_path).keys() == before.keys()


# Outputs among the data


def test_a_run_folder_within_the_data_is_refused(photos, tmp_path, monkeypatch):
    data = image_folder(tmp_path / "data", each=3)
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "more").mkdir()
    (data / "linked class").symlink_to(tmp_path / "more")
    before = contents(data)
    for output in (
        data,
        data / "run",
        data / "ant" / "run",
        tmp_path / "link" / "run",
        data / ".." / "data" / "run",
        tmp_path / "more" / "run",
    ):
        with pytest.raises(UsageError, match="lies inside the data"):
            small(data, output, resume=True)
        with pytest.raises(UsageError, match=r"lies inside the data \(data.val="):
            small(photos, output, {"data.val": str(data)})
    assert contents(data) == before
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="lies inside the data"):
        small("link", "data/run")
    (data / "linked class").unlink()
    small(data, tmp_path / "run")  # beside it is fine
    small(data, tmp_path / "data-2")


@pytest.mark.parametrize(
    ("where", "output", "refused"),
    [
        ("digits:train", "digits/run", False),
        ("cifar10:train", "cifar10/run", False),
        ("cifar10:data:train", "data/run", True),
        ("coco:a.json:data", "data/run", True),
        ("coco:a.json:data", "run", False),
        ("data:train:ignore=11", "data/masks/run", True),
        ("data/x-*.tar", "data/run", False),
        ("data", "runs/data/run", False),
        ("data", "data.run", False),
    ],
)
def test_the_folder_of_each_kind_of_data_is_known(tmp_path, monkeypatch, where, output, refused):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cifar10", "data", "train"):
        (tmp_path / name).mkdir()
    recipe = load_recipe("digits", {"data.train": where})
    if refused:
        with pytest.raises(UsageError, match="lies inside the data"):
            refuse_within_data(Path(output), recipe)
    else:
        refuse_within_data(Path(output), recipe)


# Signals, terminals, full disks, lost workers


@pytest.mark.parametrize("ignored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_terminal_that_closes_stops_the_run_saved_unless_nohup_is_said(photos, tmp_path, ignored):
    """What a run writes to a closed terminal is an error each time."""
    run, (ours, theirs) = tmp_path / "run", pty.openpty()
    epochs = 150 if ignored else 10000
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, str(ignored), *command(photos, run, f"train.epochs={epochs}", "train.eval_every=10000")[3:]],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    wait_for(lambda: steps(run) > 2, process)
    os.close(ours)
    at = steps(run)
    assert process.wait(600) == (0 if ignored else 130)
    states = sorted((run / "checkpoints").iterdir())
    if ignored:
        assert steps(run) == 150 > at + 3
        assert (run / "report.html").exists()
    else:
        assert f"step-{steps(run):08d}.pt" == states[-1].name
        assert steps(run) < 10000


TERMINAL = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # our terminal now, whose end is SIGHUP
if sys.argv.pop(1) == "True":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from convnext.cli import main
main()
"""


def test_a_full_disk_is_said_of_the_metrics_too(photos, finished, tmp_path):
    copied(finished, tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ConvnextError, match=r"^disk full while writing .*metrics.jsonl: free some space, then resume$"):
        small(photos, tmp_path, {"train.epochs": 3}, resume=True, change=True)
    with pytest.raises(ConvnextError, match=r"^disk full while writing /dev/full: free some space, then resume$"):
        write_atomically(Path("/dev/full"), lambda _: Path("/dev/full").write_bytes(b"0"))


def test_a_decoding_process_that_is_killed_ends_the_run_with_its_state_saved(photos, tmp_path):
    run = tmp_path / "run"
    more = ("train.epochs=10000", "train.eval_every=10000", "data.workers=1")
    process = subprocess.Popen(command(photos, run, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: steps(run) > 2, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 1
    assert "error: a process that decodes images died, probably because memory ran out" in message
    assert "Traceback" not in message
    assert max((run / "checkpoints").iterdir()).name == f"step-{steps(run):08d}.pt"


def test_an_error_in_a_decoding_process_is_the_same_line_as_without_one(tmp_path):
    root = image_folder(tmp_path / "photos", each=3)
    for path in root.rglob("*.jpg"):
        path.write_text("not an image")
    messages = []
    for workers in (0, 1):
        with pytest.raises(ConvnextError) as found:
            small(root, tmp_path / "run", {"data.workers": workers, "data.max_corrupt": 1.0})
        messages.append(str(found.value))
    assert "none of the 9 images could be read" in messages[0]
    assert messages[0].split("; the first")[0] == messages[1].split("; the first")[0]
    assert "\n" not in messages[1]
