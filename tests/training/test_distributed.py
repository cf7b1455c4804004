"""Several processes over Gloo, started by torchrun as a user would."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import picture_folder
from safetensors.torch import load_file

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(processes, *arguments, restarts=0):
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return [*run, "--standalone", "-m", "convnext", *map(str, arguments)]


def finish(command):
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return done


def lines(folder, kind):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in found if line["kind"] == kind]


def train(folder, *overrides):
    return ["train", "digits", "train.log_every=1", "train.epochs=3", "train.warmup_epochs=1", *overrides, "--output", folder]


def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    """Stochastic depth included: which samples it drops does not depend on the split."""
    finish([sys.executable, "-m", "convnext", *map(str, train(tmp_path / "one"))])
    finish(torchrun(2, *train(tmp_path / "two")))
    one, two = ([line["loss"] for line in lines(tmp_path / name, "train")[:50]] for name in ("one", "two"))
    assert len(one) == 50
    assert np.abs(np.array(one) - np.array(two)).max() < 1e-5
    assert lines(tmp_path / "two", "eval")[-1]["count"] == 360  # each sample once


def test_accumulation_equals_the_whole_batch(tmp_path):
    finish([sys.executable, "-m", "convnext", *map(str, train(tmp_path / "whole"))])
    finish([sys.executable, "-m", "convnext", *map(str, train(tmp_path / "parts", "train.device_batch_size=24"))])
    whole, parts = ([line["loss"] for line in lines(tmp_path / name, "train")[:50]] for name in ("whole", "parts"))
    assert np.abs(np.array(whole) - np.array(parts)).max() < 1e-5


@pytest.mark.slow
def test_a_killed_worker_under_torchrun_leaves_no_trace(tmp_path):
    more = ("train.epochs=6", "train.ema=0.99", "augment.mixup=0.8", "train.checkpoint_every=5", "--resume")
    finish(torchrun(2, *train(tmp_path / "calm", *more)))
    process = subprocess.Popen(torchrun(2, *train(tmp_path / "cut", *more), restarts=2), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "metrics.jsonl").exists() or (tmp_path / "cut" / "metrics.jsonl").read_text().count("train") < 33:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[1]), signal.SIGKILL)
    message = process.communicate(timeout=300)[1]
    assert process.returncode == 0, message
    assert "resumed after step" in message
    calm, cut = (load_file(tmp_path / name / "last.safetensors") for name in ("calm", "cut"))
    assert all(torch.equal(calm[key], cut[key]) for key in calm)
    assert lines(tmp_path / "cut", "train") == lines(tmp_path / "calm", "train")
    assert lines(tmp_path / "cut", "eval") == lines(tmp_path / "calm", "eval")


def test_evaluation_is_shared_and_counts_each_sample_once(tmp_path):
    photos = picture_folder(tmp_path / "photos", each=7)  # 21: not a multiple of the processes
    folder = tmp_path / "run"
    finish([sys.executable, "-m", "convnext", *map(str, train(folder, f"data.train={photos}", f"data.val={photos}", "train.batch_size=8"))])
    command = ["eval", folder, "--data", photos, "--json"]
    alone = json.loads(finish([sys.executable, "-m", "convnext", *map(str, command)]).stdout)
    shared = json.loads(finish(torchrun(2, *command)).stdout)
    assert shared["count"] == alone["count"] == 21
    assert shared["loss"] == pytest.approx(alone["loss"])
    assert shared["ece"] == pytest.approx(alone["ece"])
    assert shared["top1"] == alone["top1"]
    assert shared["mistakes"] == alone["mistakes"]


def test_a_batch_that_cannot_be_shared_is_told(tmp_path):
    done = subprocess.run(
        torchrun(2, *train(tmp_path / "run", "train.batch_size=33")), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode != 0
    assert "train.batch_size=33 can't be shared by 2 processes" in done.stderr
