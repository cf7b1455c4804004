"""Mistakes that are reported before PyTorch is loaded, each in a process of its own."""

import re
import subprocess
import sys

import pytest

from convnext.cli.common import check_images, check_model
from convnext.errors import UsageError

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
        (("eval", "nowhere"), "no file or run folder nowhere, and unknown model 'nowhere'"),
        (("eval", "nowhere.pth"), "no weight file nowhere.pth"),
        (("cost", "convnext_tny"), "did you mean 'convnext_tiny'?"),
        (("models", "convnxt_tiny"), "did you mean 'convnext_tiny'?"),
        (("bench", "convnext_tny"), "did you mean 'convnext_tiny'?"),
        (("export", "nowhere", "--to", "onnx", "--output", "a.onnx"), "no file or run folder nowhere, and unknown model 'nowhere'"),
        (("serve", "mine=nowhere"), "no file or run folder nowhere"),
        (("explain", "convnext_tiny", "nowhere.jpg", "--output", "o"), "no image or folder nowhere.jpg"),
        (("convert", "nowhere.pth", "b.pth", "--to", "timm"), "no weight file nowhere.pth"),
        (("report", "nowhere"), "nowhere holds no run: it has no recipe.yaml"),
        (("data", "check", "nowhere"), "no folder nowhere"),
        (("table", "imagnet"), "unknown table 'imagnet'; did you mean 'imagenet'?"),
        (("roadmap", "--data", "nowhere"), "no folder nowhere"),
    ],
)
def test_a_mistake_is_reported_before_pytorch_is_loaded(tmp_path, arguments, message):
    (tmp_path / "notes.txt").touch()
    output = () if arguments[0] != "train" or "--output" in arguments else ("--output", "run")
    done = subprocess.run([sys.executable, "-c", CODE, *arguments, *output], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert message in done.stderr
    assert done.stdout == ("1 []\n" if message.startswith("no weight file") else "2 []\n")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_mistyped_file_gets_the_nearest_name_beside_it(tmp_path):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "det.onnx").touch()
    for given, message in (
        (f"{tmp_path}/runs/deno", f"no file or run folder {tmp_path}/runs/deno; did you mean '{tmp_path}/runs/demo'?"),
        (f"{tmp_path}/det8.onnx", f"no file or run folder {tmp_path}/det8.onnx; did you mean '{tmp_path}/det.onnx'?"),
        (f"{tmp_path}/run/demo", f"no file or run folder {tmp_path}/run/demo: there is no folder {tmp_path}/run"),
        (f"{tmp_path}/else", f"no file or run folder {tmp_path}/else, and unknown model"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            check_model(given)
    with pytest.raises(UsageError, match="no image or folder .*/det.onn; did you mean '.*/det.onnx'"):
        check_images([f"{tmp_path}/det.onn"])
