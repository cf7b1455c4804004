"""What is refused before PyTorch is loaded."""

import subprocess
import sys

import pytest
from helpers import image_folder

from convnext.errors import UsageError
from convnext.training.run_paths import check_device, check_start

CODE = """
import sys
from convnext.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, [name for name in ("torch", "timm", "matplotlib", "torchvision") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "digts"), "unknown recipe 'digts'; did you mean 'digits'?"),
        (("train", "digits", "train.epoch=3"), "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        (("train", "digits", "train.epochs=many"), "train.epochs: Input should be a valid integer"),
        (("train", "digits", "model.name=convnext_tny"), "did you mean 'convnext_tiny'?"),
        (("train", "digits", "model.patch=2"), "unknown key 'model.patch'; did you mean 'model.patch_size'?"),
        (("train", "digits", "model.patch_size=two"), "model.patch_size must be int, not 'two'"),
        (("train", "digits", "--device", "gpu"), "unknown device 'gpu'; known: cpu, cuda, cuda:1 and the like, mps"),
        (("train", "finetune", "data.train=nowhere"), "data.train=nowhere: no folder nowhere"),
        (("train", "digits", "data.val=coco:a.json:nowhere", "--output", "."), ". is not empty and holds no run"),
        (("predict", "convnext_tiny", "nowhere.jpg"), "no image or folder nowhere.jpg"),
        (("predict", "convnext_tny", "notes.txt"), "did you mean 'convnext_tiny'?"),
        (("eval", "nowhere"), "unknown model 'nowhere'"),
        (("eval", "nowhere.pth"), "no weight file nowhere.pth"),
    ],
)
def test_a_mistake_is_reported_before_pytorch_is_loaded(tmp_path, arguments, message):
    (tmp_path / "notes.txt").touch()
    output = () if arguments[0] != "train" or "--output" in arguments else ("--output", "run")
    done = subprocess.run([sys.executable, "-c", CODE, *arguments, *output], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert message in done.stderr
    assert done.stdout == ("1 []\n" if message.startswith("no weight file") else "2 []\n")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("# mine\ndata: {train: digits:train}\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="already holds a run: add --resume to continue it or --overwrite"):
        check_start("digits", [], output=tmp_path)
    check_start("digits", [], output=tmp_path, resume=True)
    check_start("digits", [], output=tmp_path, overwrite=True)
    (tmp_path / ".replaced").mkdir()  # of a killed process: what is here is known after the folder was repaired
    check_start("digits", [], output=tmp_path)


def test_data_that_need_more_than_a_look_are_not_refused_here(tmp_path, monkeypatch):
    photos = image_folder(tmp_path / "photos", each=1)
    for where in (str(photos), "digits:train", "x-{000..007}.tar", "x-*.tar", "https://host/x.tar", "hf://datasets/a/b", "cifar10:train"):
        check_start("finetune", [f"data.train={where}"], output=tmp_path / "run")
    with pytest.raises(UsageError, match="lies inside the data"):
        check_start("finetune", [f"data.train={photos}"], output=photos / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")  # one process checks for all
    check_start("nothing", [], output=tmp_path)


@pytest.mark.parametrize("device", [None, "cpu", "cuda", "cuda:1", "mps"])
def test_names_of_devices_are_known(device):
    check_device(device)
