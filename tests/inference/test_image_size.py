"""`--size` of eval and predict, and weights without a head."""

import json

import pytest
import timm
import torch
from command import run
from helpers import image_folder, randomise, sample_image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from tiny_models import CLASSES, classifier, detector

import convnext
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import UsageError
from convnext.inference.predictor import Predictor
from convnext.models.load import Loaded
from convnext.models.weights import published
from convnext.models.weights.tags import table

TESTED_LARGER = [row.name for row in table.rows() if row.source == "timm" and row.test_size is not None]


@pytest.mark.parametrize("name", TESTED_LARGER)
def test_at_its_test_size_a_tag_is_prepared_as_timm_tests_it(name):
    row = table.find(f"hf://timm/{name}")
    how = published.at_size(published.from_timm(row.as_timm(), name), row.test_size, f"{row.address}@{'0' * 40}")
    wanted = resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict(), use_test_size=True)
    assert (how.image_size, how.crop_ratio, how.interpolation) == (wanted["input_size"][1], wanted["crop_pct"], wanted["interpolation"])


def test_pixels_at_the_test_size_are_timms():
    row, image = table.find("hf://timm/convnext_tiny.in12k_ft_in1k"), sample_image(size=(500, 400))
    how = published.at_size(published.from_timm(row.as_timm(), "the table"), 288, row.address)
    wanted = resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(row.name).to_dict(), use_test_size=True)
    assert torch.allclose(how.transform()(image), create_transform(**wanted)(image), atol=1e-5)


def test_another_size_sees_the_same_part_of_the_image():
    row = table.find("hf://timm/convnext_tiny.in12k_ft_in1k")
    how = published.from_timm(row.as_timm(), "the table")
    assert published.at_size(how, 256, row.address) == ClassifyPreprocessing(256, 0.95)
    assert published.at_size(how, 288, None) == ClassifyPreprocessing(288, 0.95)
    trained_on = ClassifyPreprocessing(64, 0.8)
    assert published.at_size(trained_on, 288, row.address) == ClassifyPreprocessing(288, 0.8)


@pytest.mark.parametrize(("text", "size"), [("96", 96), ("64x128", (64, 128))])
def test_predict_and_eval_take_images_of_that_size(tmp_path, text, size):
    path, _, how = classifier(tmp_path)
    photos = image_folder(tmp_path / "photos", classes=CLASSES, each=2)
    files = sorted(photos.rglob("*.jpg"))
    found = json.loads(run("predict", path, *files, "--size", text, "--json").stdout)
    assert json.loads(run("predict", path, *files, "--json").stdout) != found
    predictor, losses = convnext.load(path, device="cpu", size=size), []
    assert predictor.preprocessing == how.at_size(size)
    assert predictor.preprocessing.size == ((size, size) if isinstance(size, int) else size)
    for row, file in zip(found, files, strict=True):
        wanted = predictor(file).probabilities
        assert {one["class"]: one["probability"] for one in row["top"]} == pytest.approx(
            dict(zip(CLASSES, wanted.tolist(), strict=True)), abs=1e-5
        )
        losses.append(-wanted[CLASSES.index(file.parent.name)].log())
    measured = json.loads(run("eval", path, "--data", photos, "--size", text, "--workers", "0", "--json").stdout)
    assert measured["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    again = convnext.evaluate(path, photos, size=size, workers=0, device="cpu")
    assert again.result.metrics["loss"] == pytest.approx(measured["loss"], rel=1e-6)
    answers = convnext.predict(path, files, size=size, device="cpu").predictions.values()
    assert [answer.to_json() for answer in answers] == [{key: value for key, value in row.items() if key != "image"} for row in found]


def test_at_a_published_test_size_the_crop_is_the_published_one_in_python_too(tmp_path):
    name = "convnext_atto.d2_in1k"
    network = randomise(timm.create_model("convnext_atto"))
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, tmp_path / f"{name}.safetensors")
    how = convnext.load(tmp_path / f"{name}.safetensors", device="cpu", size=288).preprocessing
    assert how == ClassifyPreprocessing(288, 0.95)


def test_sizes_in_python_that_are_none_or_not_the_predictors(tmp_path):
    path, _, _ = classifier(tmp_path)
    for size in ("96", 0, (96, 96, 3), True):
        with pytest.raises(UsageError, match="size must be pixels a side, for instance 224, or .height, width., not "):
            convnext.load(path, size=size)
    with pytest.raises(UsageError, match="size 3: this network can't take images of that size"):
        convnext.evaluate(path, "photos", size=3)
    with pytest.raises(UsageError, match=r"a predictor takes images of its own size: give size to convnext\.load"):
        convnext.predict(convnext.load(path, device="cpu"), tmp_path, size=96)
    with pytest.raises(UsageError, match="classifiers: omit it for detectors"):
        convnext.load(detector(tmp_path)[0], size=96)


def test_sizes_that_a_network_cannot_take_are_refused(tmp_path):
    path, _, _ = classifier(tmp_path)
    sample_image().save(tmp_path / "photo.png")
    given = path, tmp_path / "photo.png"
    assert "can't take images of that size" in run("predict", *given, "--size", "3", code=2).stderr
    assert "HEIGHTxWIDTH" in run("predict", *given, "--size", "big", code=2).stderr
    assert "classifiers" in run("predict", detector(tmp_path)[0], tmp_path / "photo.png", "--size", "96", code=2).stderr
    run("predict", *given, "--output", tmp_path / "found.jsonl")
    assert "--size" in run("predict", *given, "--output", tmp_path / "found.jsonl", "--size", "96", code=2).stderr


def test_weights_without_a_head_are_for_features(tmp_path):
    network = randomise(timm.create_model("convnext_atto", num_classes=0))
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, tmp_path / "model.safetensors")
    sample_image().save(tmp_path / "photo.png")
    given = tmp_path / "model.safetensors", tmp_path / "photo.png"
    for more in ((), ("--json",), ("--output", tmp_path / "a.jsonl"), ("--draw", tmp_path / "drawn")):
        assert "no head" in (error := run("predict", *given, *more, code=2).stderr)
        assert "--features FILE" in error
    run("predict", *given, "--features", tmp_path / "found.npy")
    pytest.importorskip("fastapi")
    assert "no head" in run("serve", given[0], "--port", "0", code=2).stderr
    predictor = convnext.load(given[0], device="cpu")
    assert predictor.features(given[1]).shape == (1, 320)
    with pytest.raises(UsageError, match=r"predictor\.features"):
        predictor(given[1])
    photos = image_folder(tmp_path / "photos", classes=CLASSES, each=1)
    assert "fine-tune them first" in run("eval", given[0], "--data", photos, code=2).stderr


def test_the_image_side_of_clip_predicts_no_classes():
    network = randomise(convnext.create_model("convnext_atto", num_classes=640, widths=(8, 16, 24, 32), depths=(1, 1, 1, 1))).eval()
    source = "hf://timm/convnext_base.clip_laion2b@0123456789abcdef"
    tower = Predictor(Loaded(network, ClassifyPreprocessing(image_size=32), source=source), torch.device("cpu"))
    with pytest.raises(UsageError, match="no head for classes"):
        tower(sample_image())
    assert tower.features(sample_image()).shape == (1, 32)
    # Fine-tuned from it, on as many classes, it predicts.
    named = Loaded(network, ClassifyPreprocessing(image_size=32), source=source, classes=[str(number) for number in range(640)])
    assert Predictor(named, torch.device("cpu"))(sample_image()).top()
