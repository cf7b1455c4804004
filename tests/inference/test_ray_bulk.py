"""Prediction on Ray, which runs for real here, against that of one process."""

import io
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import sample_image
from tiny_models import classifier

from convnext.inference.fingerprint import path_beside
from convnext.inference.ray_bulk import _Pickler

pytest.importorskip("ray.data")

# Kills the process of a worker when the first batch is written, which is while others are under way.
KILLER = """
import os, signal, subprocess, sys
import convnext.cli
from convnext.inference import outputs
write, killed = outputs.Lines.write, []
def write_and_kill(self, answers):
    write(self, answers)
    if not killed:
        listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True).stdout.splitlines()
        workers = [int(line.split()[0]) for line in listed if line.split(None, 1)[1].startswith("ray::MapWorker")]
        killed.extend(pid for pid in workers if descends(pid))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
def descends(pid):
    while pid > 1 and pid != os.getpid():
        pid = int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
    return pid == os.getpid()
outputs.Lines.write = write_and_kill
sys.argv = ["convnext", *sys.argv[1:]]
try:
    convnext.cli.main()
finally:
    print(len(killed))
"""


def predict(*arguments, code=None, **environment):
    command = [sys.executable, *(["-c", code] if code else ["-m", "convnext"]), "predict", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    assert done.returncode == 0, done.stderr
    return done


def photos(folder, count):
    folder.mkdir()
    for i in range(count):
        sample_image(i, (40, 36)).save(folder / f"{i:03d}.png")
    (folder / "007.png").write_text("no image")
    return folder


def same_as_one_process(tmp_path, count, *more, **how):
    path, source = classifier(tmp_path)[0], photos(tmp_path / "photos", count)
    options = ["--batch-size", "4", "--device", "cpu", *more]
    predict(path, source, "--output", tmp_path / "one.jsonl", *options)
    done = predict(path, source, "--output", tmp_path / "ray.jsonl", *options, "--engine", "ray", **how)
    wanted = (tmp_path / "one.jsonl").read_bytes()
    assert wanted.count(b"\n") == count
    assert (tmp_path / "ray.jsonl").read_bytes() == wanted
    assert f"predicted {count - 1} of {count} images, skipped 1" in done.stderr
    return path, source, options, wanted, done


@pytest.mark.slow
def test_ray_writes_the_bytes_of_one_process_and_goes_on_where_it_stopped(tmp_path):
    path, source, options, wanted, _ = same_as_one_process(tmp_path, 30)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(wanted[: wanted.index(b"012.png")])  # three batches, and a line that was cut off
    shutil.copy(path_beside(tmp_path / "one.jsonl"), path_beside(cut))
    done = predict(path, source, "--output", cut, *options, "--engine", "ray")
    assert cut.read_bytes() == wanted
    assert "12 of 30 images are done already" in done.stderr


@pytest.mark.slow
def test_its_workers_prepare_images_of_the_size_that_is_asked_for(tmp_path):
    path, source, options, wanted, _ = same_as_one_process(tmp_path, 8, "--size", "64x96")
    predict(path, source, "--output", tmp_path / "own-size.jsonl", *options[:-2])
    assert (tmp_path / "own-size.jsonl").read_bytes() != wanted


@pytest.mark.slow
def test_a_lost_worker_loses_no_image(tmp_path):
    *_, done = same_as_one_process(tmp_path, 120, code=KILLER)
    assert int(done.stdout) >= 1  # and nothing else is there: what Ray reports goes to standard error


def test_answers_travel_without_the_batch_that_they_are_rows_of():
    batch = torch.randn(32, 1000)
    file = io.BytesIO()
    _Pickler(file).dump(list(batch))
    assert len(file.getvalue()) < 1.1 * batch.nbytes
    assert all(torch.equal(one, other) for one, other in zip(pickle.loads(file.getvalue()), batch, strict=True))
