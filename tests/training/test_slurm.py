"""The scripts of docs/how-to/slurm.md, started as Slurm does: a signal before the time limit, and a second start after a requeue."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "slurm.md"
SCRIPTS = [text for text in re.findall(r"^```shell\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL) if text.startswith("#!")]
SMALL = (
    "model.name=convnext_atto 'model.depths=[1,1,1,1]' 'model.widths=[8,16,24,32]' model.weights=null data.workers=0 data.image_size=32 "
    "train.epochs=2 train.warmup_epochs=0 train.batch_size=256 train.checkpoint_every=3 --device cpu"
)
PROGRAMS = {
    # Sends SIGTERM to its program in the first job, as soon as that has saved a checkpoint: Slurm's time limit.
    "srun": """
setsid "$@" &
program=$!
while [ "${LIMITED:-}" ] && [ ! -e requeued ] && kill -0 $program 2>/dev/null; do
    if ls run/checkpoints/step-*.pt >/dev/null 2>&1; then kill -TERM -- -$program; break; fi
    sleep 0.02
done
wait $program
""",
    "scontrol": 'if [ "$1" = requeue ]; then echo "$2" >>requeued; else echo localhost; fi',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "convnext": f'exec {sys.executable} -m convnext "$@"',
}


def script(text, folder):
    """Write the script for a small run in `folder` and return its path. The programs of the cluster are beside it."""
    text = re.sub(r"/shared/runs/\w+(\$SLURM_ARRAY_TASK_ID)?", "run", text)
    text = re.sub(r"data\.train=/shared.*?(?=$| && )", f"data.train=digits:train data.val=digits:val {SMALL}", text, flags=re.MULTILINE)
    text = (
        text.replace("--nproc-per-node=8", "--nproc-per-node=2").replace("imagenet1k/convnext_tiny", "digits").replace("finetune", "digits")
    )
    assert "/shared" not in text
    assert "8" not in re.findall(r"nproc-per-node=(\d+)", text)
    for name, body in PROGRAMS.items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "job.sh").write_text(text)
    return folder / "job.sh"


def job(path, limited):
    """Run the script as a job of Slurm, with a time limit if `limited`; return its exit code and its output."""
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    slurm |= {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "1", "LIMITED": "1" if limited else ""}
    environment = os.environ | slurm | {"PATH": f"{path.parent / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(["bash", path], cwd=path.parent, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def finish(text, folder, limited):
    """Run the script until it asks for no other start; return the number of jobs."""
    folder.mkdir()
    path, jobs = script(text, folder), 0
    while True:
        asked = len(requeues(folder))
        code, said = job(path, limited)
        jobs += 1
        if len(requeues(folder)) == asked:
            assert code == 0, said
            return jobs
        assert "resume with the same command and --resume" in said


def requeues(folder):
    return (folder / "requeued").read_text().split() if (folder / "requeued").exists() else []


@pytest.mark.slow
@pytest.mark.parametrize(("text", "name"), [*zip(SCRIPTS, ("4711", "4711_1"), strict=True)], ids=("nodes", "seeds"))
def test_a_job_at_its_time_limit_comes_back_and_ends_with_the_weights_of_one_left_alone(text, name, tmp_path):
    assert finish(text, tmp_path / "limited", limited=True) == 2
    assert requeues(tmp_path / "limited") == [name]
    assert finish(text, tmp_path / "alone", limited=False) == 1
    cut, calm = (load_file(tmp_path / folder / "run" / "last.safetensors") for folder in ("limited", "alone"))
    assert cut.keys() == calm.keys()
    assert all(torch.equal(cut[key], calm[key]) for key in cut)


@pytest.mark.slow
@pytest.mark.parametrize("text", SCRIPTS, ids=("nodes", "seeds"))
def test_a_job_that_fails_at_its_start_does_not_come_back(text, tmp_path):
    path = script(text.replace("--resume", "--resume train.epoch=3"), tmp_path)
    code, said = job(path, limited=True)
    assert code != 0
    assert "unknown key 'train.epoch'" in said
    assert not requeues(tmp_path)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("text", SCRIPTS, ids=("nodes", "seeds"))
def test_shellcheck_finds_nothing(text):
    done = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
