import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import image_folder

from convnext.errors import ConvnextError, UsageError
from convnext.paper.roadmap import parse_steps, walk
from convnext.paper.runs import _Labelled

ROOT = Path(__file__).parents[2]
FEW = ["data.train=digits:train", "data.val=digits:val", "data.image_size=32", "data.workers=0", "model.width=4", "train.epochs=1"]
FEW += ["train.warmup_epochs=0.1", "train.batch_size=256"]


def go(output, *more, steps=(3, 16), devices=("cpu",)):
    lines = []
    found = walk([*FEW, *more], output=output, small=True, steps=steps, seeds=1, devices=devices, report=lines.append)
    return found, lines


@pytest.mark.slow
def test_a_roadmap_continues_where_it_stopped(tmp_path, capsys):
    """With two devices, two runs train at a time, each in a process of its own."""
    found, lines = go(tmp_path, devices=("cpu", "cpu"))
    assert lines[0] == "2 runs of 2 steps, 0 of them finished"
    assert [rung.step for rung in found.rungs] == ["patchify stem", "separate downsampling layers"]
    assert all(len(rung.top1) == 1 for rung in found.rungs)
    assert json.loads((tmp_path / "roadmap.json").read_text())["rungs"][1]["published_top1"] == 81.97
    assert (tmp_path / "roadmap.png").stat().st_size > 10_000
    assert "patchify stem" in (tmp_path / "roadmap.svg").read_text()
    assert "<svg" in (tmp_path / "report.html").read_text()
    table = (tmp_path / "roadmap.md").read_text().splitlines()
    assert re.search(rf"\| patchify stem \| 79.51 % \| 4.42 G \| {found.rungs[0].top1[0]:.2f} % \| – \| 1 \|", table[2])

    # A run that had not come to its report is resumed, here in this process; the other stays as it is.
    unfinished = tmp_path / "roadmap_t_03_patchify_stem" / "seed0"
    (unfinished / "report.html").unlink()
    kept = (tmp_path / "roadmap_t_16_separate_downsampling" / "seed0" / "last.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    threads = os.environ.get("OMP_NUM_THREADS")
    again, lines = go(tmp_path)
    assert lines[0] == "2 runs of 2 steps, 1 of them finished"
    assert again == found
    assert "resumed after step" in capsys.readouterr().err  # the progress of a run is shown
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert (tmp_path / "roadmap_t_16_separate_downsampling" / "seed0" / "last.safetensors").stat().st_mtime_ns == kept

    with pytest.raises(UsageError, match=r"optim.lr was 0.002, now 0.5"):
        go(tmp_path, "optim.lr=0.5")


@pytest.mark.parametrize("devices", [("cpu",), pytest.param(("cpu", "cpu"), marks=pytest.mark.slow)])
def test_a_run_that_fails_is_named_with_the_reason(tmp_path, devices):
    with pytest.raises(ConvnextError, match=r"the run .*roadmap_t_.*seed0 failed: the loss is .*; the same command continues"):
        go(tmp_path, "optim.lr=1e30", "train.warmup_epochs=0", devices=devices)


@pytest.mark.slow
def test_a_signal_to_the_command_stops_its_runs_and_the_same_command_continues(tmp_path):
    arguments = ["--data", "digits", "--scale", "small", "--steps", "3,16", "--seeds", "1", "--device", "cpu", "--device", "cpu"]
    command = [sys.executable, "-m", "convnext", "roadmap", *arguments, "--output", "runs", *FEW[2:], "train.epochs=200"]
    begun = {
        "cwd": tmp_path,
        "env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        "stderr": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen(command, start_new_session=True, **begun) as process:
        wait_for(lambda: len({path.parents[2] for path in tmp_path.rglob("step-*.pt")}) == 2)
        process.terminate()
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    assert "error: stopped; the runs have saved their states: the same command continues" in said
    assert "Traceback" not in said
    wait_for(lambda: not is_alive(process.pid))  # none of its runs is left
    states = {path.parents[2].name for path in tmp_path.rglob("step-*.pt")}
    assert states == {"roadmap_t_03_patchify_stem", "roadmap_t_16_separate_downsampling"}
    with pytest.raises(UsageError, match=r"train.epochs was 200, now 1; give the same overrides as then, or another --output"):
        walk([*FEW, "data.workers=1"], output=tmp_path / "runs", small=True, steps=[3], seeds=1, devices=["cpu"])


def wait_for(condition):
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_beside_others_labels_its_lines():
    shown = io.StringIO()
    _Labelled(shown, "step/seed0").write("one\n\ntwo\n")
    assert shown.getvalue() == "step/seed0: one\nstep/seed0: two\n"


def test_steps_are_read_as_people_write_them(tmp_path):
    assert parse_steps("1,3,9-12") == [1, 3, 9, 10, 11, 12]
    with pytest.raises(UsageError, match="write them as"):
        parse_steps("1,x")
    with pytest.raises(UsageError, match="no step 17"):
        walk(FEW, output=tmp_path, small=True, steps=[17])


@pytest.mark.slow
def test_runs_counted_in_steps_are_finished_at_their_last_one_and_a_figure_that_fails_stops_none(tmp_path):
    short = ("train.iterations=2", "train.warmup_epochs=0", "train.eval_every=3")
    (tmp_path / "roadmap.png").mkdir()  # where the figure should be
    found, lines = go(tmp_path, *short, steps=[3])
    assert (len(found.rungs[0].top1), found.iterations) == (1, 2)
    assert sum("could not be written (IsADirectoryError" in line for line in lines) == 2  # after the run, and at the end
    (tmp_path / "roadmap.png").rmdir()

    # A line that a kill cut short, behind the last evaluation, is no evaluation, and no reason to fail.
    with (tmp_path / "roadmap_t_03_patchify_stem" / "seed0" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "eval", "st')
    again, lines = go(tmp_path, *short, steps=[3])
    assert lines[0] == "1 run of 1 step, 1 of them finished"
    assert again == found
    assert "2 steps" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("override", ["model.name=convnext_tiny", "seed=3", "task=detect"])
def test_what_the_roadmap_sets_itself_is_refused(tmp_path, override):
    with pytest.raises(UsageError, match="can't be set"):
        go(tmp_path, override)


def test_runs_within_the_data_are_refused_before_anything_is_written(tmp_path):
    data = image_folder(tmp_path / "photos", each=2)
    before = sorted(data.rglob("*"))
    with pytest.raises(UsageError, match=r"lies inside the data \(data.train="):
        walk([*FEW, f"data.train={data}", f"data.val={data}"], output=data / "roadmap", small=True, steps=[3], seeds=1, devices=["cpu"])
    assert sorted(data.rglob("*")) == before
