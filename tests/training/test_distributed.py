"""Several processes over Gloo, started by torchrun as a user would."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import command
import numpy as np
import pytest
import torch
from helpers import image_folder, sample_image
from PIL import Image
from safetensors.torch import load_file
from tiny_models import CLASSES, detector, segmenter

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
# A network and a run small enough for every commit; stochastic depth stays, because it is drawn for the whole batch.
SMALL = ["model.depths=[1,1,1,1]", "model.widths=[8,8,16,16]", "model.drop_path=0.3", "data.workers=0"]
SMALL += ["train.iterations=12", "train.warmup_epochs=0.25"]


def torchrun(processes, *arguments, restarts=0, script=("-m", "convnext")):
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return [*run, "--standalone", *map(str, script), *map(str, arguments)]


def program(path, begin):
    """The command line as a script that does something first, where `rank` is known."""
    path.write_text(f"import os, time\nrank = int(os.environ['RANK'])\n{begin}\nfrom convnext.cli import main\nmain()\n")
    return path


def finish(command):
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return done


def lines(folder, kind):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in found if line["kind"] == kind]


def train(folder, *overrides):
    return ["train", "digits", "train.log_every=1", "train.epochs=3", "train.warmup_epochs=1", *overrides, "--output", folder]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The losses of twelve steps of one process, each with its whole batch at once."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    command.run(*train(folder, *SMALL))
    return losses(folder)


def losses(folder):
    found = np.array([line["loss"] for line in lines(folder, "train")])
    assert len(found) == 12
    return found


def test_two_processes_equal_one_with_the_whole_batch(tmp_path, whole):
    """Stochastic depth included: which samples it drops does not depend on the split."""
    finish(torchrun(2, *train(tmp_path / "two", *SMALL)))
    assert np.abs(whole - losses(tmp_path / "two")).max() < 1e-5
    assert lines(tmp_path / "two", "eval")[-1]["count"] == 360  # each sample once


STOPPED = """
import sys
import torch.distributed as dist
import convnext
from convnext.distributed import process_group

class Early(convnext.Callback):
    def on_step(self, moment):
        if moment.step == 4:
            raise convnext.Stop("early")

with process_group("cpu"):
    settings = ["train.log_every=1", "train.epochs=3", "train.warmup_epochs=1", *sys.argv[2:]]
    result = convnext.train("digits", settings, output=sys.argv[1], callbacks=[Early()])
    found = [None, None]
    dist.all_gather_object(found, result.step)
    assert found == [5, 5], found  # the others learn of it in the numbers of the next step
    assert result.stopped == "early"
"""


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step_and_resume(tmp_path, whole):
    (tmp_path / "program.py").write_text(STOPPED)
    done = finish(torchrun(2, tmp_path / "run", *SMALL, script=[tmp_path / "program.py"]))
    assert "stopped at step 5 of 12: early" in done.stderr
    finish(torchrun(2, *train(tmp_path / "run", *SMALL, "--resume")))
    assert np.abs(whole - losses(tmp_path / "run")).max() < 1e-5


@pytest.mark.slow
def test_a_time_limit_ends_all_processes_and_json_is_printed_once(tmp_path):
    done = finish(torchrun(2, *train(tmp_path / "run", *SMALL, "train.max_hours=1e-9", "--json")))
    found = json.loads(done.stdout)
    assert found["step"] == 0
    assert found["stopped"] == "train.max_hours=1e-09 has passed"


def test_accumulation_equals_the_whole_batch(tmp_path, whole):
    command.run(*train(tmp_path / "parts", *SMALL, "train.device_batch_size=24"))
    assert np.abs(whole - losses(tmp_path / "parts")).max() < 1e-5


@pytest.mark.slow
def test_a_killed_worker_under_torchrun_leaves_no_trace(tmp_path):
    more = ("train.epochs=6", "train.ema=0.99", "augment.mixup=0.8", "train.checkpoint_every=5", "--resume")
    finish(torchrun(2, *train(tmp_path / "calm", *more)))
    killed_and_restarted(tmp_path, *more)
    calm, cut = (load_file(tmp_path / name / "last.safetensors") for name in ("calm", "cut"))
    assert all(torch.equal(calm[key], cut[key]) for key in calm)
    assert lines(tmp_path / "cut", "train") == lines(tmp_path / "calm", "train")
    assert lines(tmp_path / "cut", "eval") == lines(tmp_path / "calm", "eval")


def killed_and_restarted(tmp_path, *more, after=33):
    """A run of two processes, one of which is killed; the second is late both times."""
    started = torchrun(2, *train(tmp_path / "cut", *more), restarts=2, script=[program(tmp_path / "late.py", "time.sleep(2 * rank)")])
    process = subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 600
    while not (tmp_path / "cut" / "metrics.jsonl").exists() or (tmp_path / "cut" / "metrics.jsonl").read_text().count("train") < after:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[1]), signal.SIGKILL)
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 0, message
    assert "resumed after step" in message


@pytest.mark.slow
def test_evaluation_is_shared_and_counts_each_sample_once(tmp_path):
    photos = image_folder(tmp_path / "photos", each=7)  # 21: not a multiple of the processes
    folder = tmp_path / "run"
    command.run(*train(folder, f"data.train={photos}", f"data.val={photos}", "train.batch_size=8"))
    evaluate = ["eval", folder, "--data", photos, "--json"]
    alone = json.loads(command.run(*evaluate).stdout)
    shared = json.loads(finish(torchrun(2, *evaluate)).stdout)
    assert shared["count"] == alone["count"] == 21
    assert shared["loss"] == pytest.approx(alone["loss"])
    assert shared["ece"] == pytest.approx(alone["ece"])
    assert shared["top1"] == alone["top1"]
    assert shared["mistakes"] == alone["mistakes"]


def annotated(root, task):
    """Seven images with the classes of the tiny networks, as boxes or as masks, and the name of the data."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    boxes = []
    for i in range(7):
        sample_image(i, (64, 48)).save(root / "images" / f"{i}.png")
        mask = np.arange(48 * 64).reshape(48, 64) // (300 + 50 * i) % 3
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{i}.png")
        boxes += [{"image_id": i, "category_id": k, "bbox": [8 * i, 9 * k, 20, 25], "area": 500, "iscrowd": 0} for k in range(3) if i < 6]
    values = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(7)],
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
    }
    (root / "boxes.json").write_text(json.dumps(values))
    return f"coco:{root / 'boxes.json'}:{root / 'images'}" if task == "detect" else str(root)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_what_is_found_in_images_is_the_same_in_two_processes(tmp_path, task):
    weights = {"detect": detector, "segment": segmenter}[task](tmp_path)[0]
    evaluate = ["eval", weights, "--data", annotated(tmp_path / "data", task), "--json", "--batch-size", "1"]
    alone = json.loads(command.run(*evaluate).stdout)
    assert json.loads(finish(torchrun(2, *evaluate)).stdout) == alone
    assert alone["worst"][0]["image"].endswith(".png")


@pytest.mark.slow
def test_two_processes_with_frozen_stages_equal_one(tmp_path):
    more = [*SMALL, "model.freeze=2", "train.ema=0.5"]
    finish(torchrun(2, *train(tmp_path / "two", *more)))
    command.run(*train(tmp_path / "one", *more))
    assert np.abs(losses(tmp_path / "one") - losses(tmp_path / "two")).max() < 1e-5
    one, two = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "two"))
    frozen = [key for key in one if key.startswith(("stages.0.", "stages.1.", "downsample_layers.0.", "downsample_layers.1."))]
    assert frozen
    assert all(torch.equal(one[key], two[key]) for key in frozen)


@pytest.mark.slow
def test_batch_norm_is_evaluated_with_the_statistics_that_are_saved(tmp_path):
    """Each process has running statistics of its own; the main process's are saved."""
    network = ["model.name=roadmap_t_01_modern_training", "model.width=8", "model.depths=[1,1,1,1]", "model.widths=null"]
    more = ["model.drop_path=0", "train.epochs=1", "train.warmup_epochs=0", "train.nonfinite=skip", "data.workers=0"]
    finish(torchrun(2, *train(tmp_path / "run", *network, *more)))
    within = lines(tmp_path / "run", "eval")[-1]
    alone = finish([sys.executable, "-m", "convnext", "eval", str(tmp_path / "run" / "last.safetensors"), "--data", "digits:val", "--json"])
    assert json.loads(alone.stdout)["loss"] == pytest.approx(within["loss"], rel=2e-6)


TINY = ["model.depths=[1,1,1,1]", "model.widths=[4,4,4,4]", "train.iterations=2", "train.warmup_epochs=0", "data.workers=0"]


def pair(tmp_path, begin, *arguments):
    """Two processes without torchrun, which would end one when the other fails; what each says, with its exit code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = program(tmp_path / "program.py", begin)
    processes = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(script), *map(str, arguments)]
        processes.append(subprocess.Popen(command, env=ENVIRONMENT | own, stderr=subprocess.PIPE, text=True))
    try:
        return [(process.communicate(timeout=600)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_a_process_that_looks_late_does_not_take_the_run_just_begun_for_one_to_resume(tmp_path):
    late = (
        "if rank:\n"
        "    from convnext.training.folder.run_folder import RunFolder\n"
        "    make = RunFolder.__init__\n"
        "    RunFolder.__init__ = lambda self, path: (make(self, path), time.sleep(4))[0]\n"
    )
    (_, main), (_, other) = pair(tmp_path, late, *train(tmp_path / "run", *TINY, "--resume"))
    assert (main, other) == (0, 0)
    assert lines(tmp_path / "run", "eval")[-1]["count"] == 360


def test_what_one_process_is_refused_ends_all_with_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    (main, main_code), (other, other_code) = pair(tmp_path, "", *train(tmp_path / "run"))
    assert (main_code, other_code) == (2, 2)
    assert main == f"error: {tmp_path / 'run'} is not empty and holds no run: choose another folder for --output\n"
    assert other == ""


@pytest.mark.slow
def test_processes_that_see_other_data_do_not_train(tmp_path):
    for rank, each in enumerate((8, 7)):
        image_folder(tmp_path / str(rank) / "photos", each=each)
    here = f"os.chdir({str(tmp_path)!r} + f'/{{rank}}')"
    (main, main_code), (other, other_code) = pair(tmp_path, here, *train(tmp_path / "run", "data.train=photos", "data.val=photos"))
    assert (main_code, other_code) == (1, 1)
    assert "numbers of classes, training images and validation images: rank 1 finds [3, 21, 21], rank 0 [3, 24, 24]" in main
    assert "Gloo" not in main + other
    assert "error" not in other
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    done = subprocess.run(
        torchrun(2, *train(tmp_path / "run", "train.batch_size=33")), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode != 0
    assert "train.batch_size=33 can't be shared by 2 processes" in done.stderr


NO_SYNC = """
import sys
import torch
import torch.distributed as dist
import convnext
from convnext.data.loader import Sample
from convnext.distributed import process_group
from convnext.recipe import load_recipe
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.loss import ClassifyCriterion
from convnext.training.state import new_state
from convnext.training.step import TrainStep

with process_group("cpu") as device:
    recipe = load_recipe("digits", ["train.device_batch_size=2", f"train.compile={sys.argv[1]}"])
    torch.manual_seed(0)
    model = convnext.create_model("convnext_atto", depths=(1, 1, 1, 1), widths=(4, 4, 4, 4), num_classes=3)
    step = TrainStep(new_state(model, recipe, device), ClassifyCriterion(recipe, 3), recipe, 16, device)
    exchanges = []

    def counted(state, bucket):
        exchanges.append(bucket.is_last())
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0] / 2)

    step.ddp.register_comm_hook(None, counted)
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    batches = [ClassifyBatch(torch.randn(2, 3, 32, 32, generator=generator), torch.arange(2), [0, 1], []) for _ in range(4)]
    step.run(iter(batches), 1e-3)
    if dist.get_rank() == 0:
        print("exchanges", sum(exchanges), float(sum(p.double().sum() for p in model.parameters())))
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_exchanged_once_a_step_however_many_micro_batches(tmp_path, compiled):
    """Under torch.compile too, where the network is no longer the module that exchanges."""
    (tmp_path / "program.py").write_text(NO_SYNC)
    done = finish(torchrun(2, str(compiled).lower(), script=[tmp_path / "program.py"]))
    assert done.stdout.split()[:2] == ["exchanges", "1"]
