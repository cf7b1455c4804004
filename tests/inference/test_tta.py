"""Test-time augmentation: the mean over an image and its mirror image, in eval and predict."""

import json

import pytest
import torch
from command import run
from helpers import image_folder, sample_image
from PIL import Image, ImageOps
from tiny_models import CLASSES, classifier, detector, segmenter

import convnext
from convnext import tasks
from convnext.errors import UsageError


def test_predict_gives_the_mean_probabilities_of_an_image_and_its_mirror_image(tmp_path):
    path, model, how = classifier(tmp_path)
    image = sample_image(size=(90, 70))
    image.save(tmp_path / "photo.png")
    both = torch.stack([how.transform()(one) for one in (image, ImageOps.mirror(image))])
    one, other = model(both).softmax(1)
    assert not torch.allclose(one, other, atol=1e-3)
    (found,) = json.loads(run("predict", path, tmp_path / "photo.png", "--tta", "flip", "--json").stdout)
    wanted = dict(zip(CLASSES, ((one + other) / 2).tolist(), strict=True))
    assert {row["class"]: row["probability"] for row in found["top"]} == pytest.approx(wanted, abs=1e-5)
    (plain,) = json.loads(run("predict", path, tmp_path / "photo.png", "--json").stdout)
    assert plain != found


def test_eval_measures_what_predict_gives(tmp_path):
    path, _, _ = classifier(tmp_path)
    photos = image_folder(tmp_path / "photos", classes=CLASSES, each=3)
    found = json.loads(run("eval", path, "--data", photos, "--tta", "flip", "--workers", "0", "--json").stdout)
    predictor = convnext.load(path, device="cpu")
    predictor.preprocessing = tasks.get("classify").mirrored(predictor.preprocessing)
    losses = [-predictor(file).probabilities[CLASSES.index(file.parent.name)].log() for file in sorted(photos.rglob("*.jpg"))]
    assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert found["loss"] == pytest.approx(convnext.evaluate(path, photos, workers=0, tta="flip").result.metrics["loss"])
    assert found["loss"] != pytest.approx(convnext.evaluate(path, photos, workers=0).result.metrics["loss"], rel=1e-6)


def test_a_segmenter_averages_too(tmp_path):
    path, _, _ = segmenter(tmp_path)
    how = tasks.get("segment").mirrored(convnext.load(path, device="cpu").preprocessing)
    assert how.mirror


def test_it_is_refused_for_detectors_and_with_what_it_does_not_change(tmp_path):
    path, _, _ = detector(tmp_path)
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    error = run("predict", path, tmp_path / "photo.png", "--tta", "flip", code=2).stderr
    assert "--tta flip: the objects found in an image and in its mirror image can't be averaged (task detect)" in error
    with pytest.raises(UsageError, match="task detect"):
        tasks.get("detect").mirrored(None)
    path, _, _ = classifier(tmp_path)
    error = run("predict", path, tmp_path / "photo.png", "--tta", "flip", "--features", tmp_path / "f.npy", code=2).stderr
    assert "--tta can't be used with --features" in error


def test_an_output_with_and_one_without_are_not_mixed(tmp_path):
    path, _, _ = classifier(tmp_path)
    for name in ("a", "b"):
        sample_image().save(tmp_path / f"{name}.png")
    run("predict", path, tmp_path / "a.png", "--output", tmp_path / "out.jsonl", "--tta", "flip")
    assert "tta" in run("predict", path, tmp_path / "b.png", "--output", tmp_path / "out.jsonl", code=2).stderr
