"""A whole run on images of other channels: the numbers it measures, its weights, its resumption, and what uses them."""

import numpy as np
import pytest
import torch
from command import run
from deep_files import tiff
from helpers import sample_image
from PIL import Image

import convnext
from convnext.errors import CorruptImageError
from convnext.export.export import export
from convnext.models.load import load
from convnext.recipe import load_recipe

TINY = {
    "model.name": "convnext_atto",
    "model.depths": [1, 1, 1, 1],
    "model.widths": [8, 16, 24, 32],
    "model.layer_scale": 0.1,
    "data.workers": 0,
    "data.image_size": 32,
    "augment.rand_augment": None,
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.batch_size": 4,
}
FIVE = {"data.channels": 5, "data.mean": "auto", "data.range": 4095} | TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("bands")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee")):
        (root / "data" / name).mkdir(parents=True)
        for i in range(6):
            values = rng.integers(0, 3000, (40, 48, 5)).astype(np.uint16)
            values[..., 3 + label] += 1000
            (root / "data" / name / f"{i}.tif").write_bytes(tiff(values, compressed=True))
    convnext.train("from_scratch_small", FIVE | {"data.train": str(root / "data")}, output=root / "run")
    return root


def test_what_is_measured_is_written_and_travels_with_the_weights(finished):
    recipe, how = load_recipe(str(finished / "run" / "recipe.yaml")), load(finished / "run").preprocessing
    assert len(recipe.data.mean) == len(recipe.data.std) == 5
    assert recipe.data.mean[3] > recipe.data.mean[0] + 0.05
    assert (how.mean, how.std, how.channels) == (recipe.data.mean, recipe.data.std, 5)
    assert load(finished / "run").model.spec["in_channels"] == 5


def test_the_same_command_resumes_with_the_same_numbers(finished):
    before = (finished / "run" / "recipe.yaml").read_text()
    convnext.train("from_scratch_small", FIVE | {"data.train": str(finished / "data")}, output=finished / "run", resume=True)
    assert (finished / "run" / "recipe.yaml").read_text() == before


def test_files_arrays_and_commands_give_one_answer(finished):
    predictor, path = convnext.load(finished / "run"), finished / "data" / "ant" / "0.tif"
    values = predictor.open(path).values
    wanted = predictor(path).probabilities
    for other in (path.read_bytes(), values, values.transpose(1, 2, 0)):
        assert torch.equal(predictor(other).probabilities, wanted)
    with pytest.raises(CorruptImageError, match="image: 3 channels instead of 5"):
        predictor(sample_image())
    assert "accuracy" in run("eval", finished / "run", "--data", finished / "data", "--workers", "0").stdout
    assert run("predict", finished / "run", path, "--draw", finished / "drawn", "--output", finished / "p.csv").returncode == 0
    assert Image.open(next((finished / "drawn").iterdir())).mode == "RGB"
    assert "12 images" in run("data", "check", finished / "data", "--channels", 5, code=1).stdout


@pytest.mark.slow
def test_grey_digits_are_learnt_from_weights_of_rgb(tmp_path):
    """The embedded digits are RGB: they become grey."""
    rgb = convnext.create_model("convnext_atto", num_classes=10, depths=(1, 1, 1, 1), widths=(8, 16, 24, 32), layer_scale=0.1)
    torch.save(rgb.state_dict(), tmp_path / "rgb.pth")
    more = {"data.train": "digits:val", "data.val": "digits:val", "data.channels": 1, "data.mean": 0.5, "data.std": 0.3}
    more |= {"model.weights": str(tmp_path / "rgb.pth"), "train.batch_size": 64}
    convnext.train("digits", TINY | more, output=tmp_path / "run")
    predictor = convnext.load(tmp_path / "run")
    assert predictor.preprocessing.mean == (0.5,)
    image = sample_image()
    assert torch.equal(predictor(image).probabilities, predictor(image.convert("L")).probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [False, True])
def test_an_exported_network_takes_as_many_channels(finished, tmp_path, pixels):
    export(finished / "run", "onnx", tmp_path / "five.onnx", with_preprocessing=pixels)
    path = finished / "data" / "ant" / "0.tif"
    ours, theirs = (convnext.load(source)(path).probabilities for source in (finished / "run", tmp_path / "five.onnx"))
    assert torch.allclose(ours, theirs, atol=0.02 if pixels else 1e-4)  # a file that takes pixels takes them of 8 bits
