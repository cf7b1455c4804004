"""Images that a decoder alone does not make right, from the folder to the answer: by path, as PIL image, as bytes, and in the service."""

import json
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from helpers import shared
from PIL import Image, ImageOps
from service import running
from tiny_models import classifier

import convnext
from convnext.cli import main
from convnext.data.images import CorruptImageError
from convnext.errors import ConvnextError

TINY = {
    "model.depths": (1, 1, 1, 1), "model.widths": (8, 16, 24, 32), "train.batch_size": 8, "train.warmup_epochs": 1,
    "augment.rand_augment": None, "augment.random_erasing": 0, "augment.crop_scale": (0.9, 1.0), "augment.crop_aspect": (1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """Two classes of float TIFFs up to 1.02: bright in the middle, bright at the rim."""
    root, rng = tmp_path_factory.mktemp("floats") / "floats", np.random.default_rng(0)
    radius = np.hypot(*(np.mgrid[:32, :32] - 16))
    for name, bright in (("centre", radius < 8), ("rim", radius > 12)):
        (root / name).mkdir(parents=True)
        for i in range(8):
            values = (0.2 + 0.6 * bright + rng.uniform(0, 0.1, radius.shape)).astype(np.float32)
            values[0, i] = 1.02
            Image.fromarray(values).save(root / name / f"{i}.tif")
    return root


@pytest.fixture(scope="module")
def trained(floats):
    """A run on them."""
    data = {"data.train": str(floats), "data.val": str(floats), "data.range": 1.02, "train.epochs": 12}
    convnext.train("digits", TINY | data, output=floats.parent / "run")
    return floats.parent / "run"


def command(monkeypatch, capsys, *arguments, code=0):
    monkeypatch.setattr(sys, "argv", ["convnext", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    done = capsys.readouterr()
    assert (stopped.value.code or 0) == code, done.err
    return done


def test_without_a_range_numbers_that_do_not_fit_are_refused_before_and_in_the_run(floats, tmp_path, monkeypatch, capsys):
    message = "have more than 8 bits, the largest value is 1.02: set data.range=1.02"
    assert f"16 images {message}" in command(monkeypatch, capsys, "data", "check", floats, code=1).out
    with pytest.raises(ConvnextError, match=r"images could be read.*\.tif: values up to 1.02, beyond 1: set data.range=1.02"):
        convnext.train("digits", TINY | {"data.train": str(floats), "data.val": str(floats)}, output=tmp_path / "run")
    assert f"in a sample of the images: 8 images {message}; `convnext data check` reads all" in capsys.readouterr().err


def test_the_range_is_that_of_training_wherever_the_weights_are_used(trained, floats, tmp_path, monkeypatch, capsys):
    files = sorted(floats.rglob("*.tif"))
    predictor = convnext.load(trained, device="cpu")
    assert predictor.preprocessing.range == 1.02
    answers = [one.top()[0][0] for one in predictor(files)]
    assert answers == [file.parent.name for file in files]
    assert json.loads((trained / "evaluation.json").read_text())["metrics"]["top1"] == 100
    found = command(monkeypatch, capsys, "eval", trained, "--data", floats, "--json", "--device", "cpu", "--workers", 0)
    assert json.loads(found.out)["top1"] == 100
    drawn = tmp_path / "drawn"
    found = command(monkeypatch, capsys, "predict", trained, *files[:3], "--draw", drawn, "--json", "--device", "cpu")
    assert len(list(drawn.glob("*.jpg"))) == 3
    for path in drawn.glob("*.jpg"):
        with Image.open(path) as image:
            assert image.convert("L").getextrema()[1] > 200
    command(monkeypatch, capsys, "explain", trained, files[0], "--output", tmp_path / "why", "--features", "--neighbours", floats)
    assert len(list((tmp_path / "why").rglob("*.png"))) == 3
    exported = tmp_path / "w.safetensors"
    command(monkeypatch, capsys, "export", trained, "--to", "safetensors", "--output", exported)
    assert convnext.load(exported, device="cpu").preprocessing == predictor.preprocessing


def test_what_does_not_fit_the_range_of_the_network_is_reported_to_whoever_predicts(tmp_path):
    path, _, _ = classifier(tmp_path)
    Image.fromarray(np.full((9, 9), 1.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(CorruptImageError, match=r"a\.tif: values up to 1.5, beyond 1: set data.range=1.5"):
        convnext.load(path, device="cpu")(tmp_path / "a.tif")


CASES = {
    "exif_turned": {},
    "xmp_before_exif": {},
    "float_tiff_above_one": {"data.range": 1.02},
    "twelve_of_sixteen_bits": {"data.range": 4095},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_network_is_right_on_all_it_was_trained_on_however_an_image_comes(case, tmp_path):
    subprocess.run([sys.executable, shared("cases") / "make.py", tmp_path, case], check=True)
    data = {"data.train": str(tmp_path / case), "data.val": str(tmp_path / case), "train.epochs": 14}
    convnext.train("digits", TINY | data | CASES[case], output=tmp_path / "run")
    predictor, files = convnext.load(tmp_path / "run", device="cpu"), sorted((tmp_path / case).rglob("*.*"))
    ways = [
        lambda path: path,
        lambda path: path.read_bytes(),
        Image.open,
        lambda path: Image.open(BytesIO(path.read_bytes())).copy(),
        lambda path: np.asarray(ImageOps.exif_transpose(Image.open(path))),
    ]
    for way in ways:
        answers = [one.top()[0][0] for one in predictor([way(path) for path in files])]
        assert answers == [path.parent.name for path in files]
    with running(tmp_path / "run") as service:
        client = service.wait().client
        answers = [client.post("/predict", content=path.read_bytes()).json()["top"][0]["class"] for path in files]
    assert answers == [path.parent.name for path in files]
