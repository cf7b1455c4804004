"""Prediction sets and unknown images: in Python, in text, JSON, files and drawings, of files and exported files; and who is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from command import run
from fitted import HOW, embeddings, fitted, images, labels, write_fitted
from helpers import sample_image
from PIL import Image
from tiny_models import regressor, segmenter, several

import convnext
from convnext.errors import UsageError
from convnext.inference.predictor import Predictor
from convnext.models.calibration import REFERENCE, calibrate, novelty, prediction_set, threshold
from convnext.models.load import Loaded
from convnext.models.weights.files import read_weights, write_weights
from convnext.tasks.classify.known import KeepsEmbeddings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Calibrated weights, the same weights without a calibration, four digits of which one is hard, and an image of something else."""
    folder = tmp_path_factory.mktemp("known")
    write_fitted(folder / "digits.safetensors")
    write_fitted(folder / "plain.safetensors", calibration=False)
    (folder / "photos").mkdir()
    for index in (0, 1, 2, 7):
        images("val")[index].save(folder / "photos" / f"{index}.png")
    sample_image(3).save(folder / "photos" / "other.png")
    return folder


@pytest.fixture
def predictor(folder):
    return convnext.load(folder / "digits.safetensors", device="cpu")


def test_sets_and_novelty_are_those_of_the_calibration(predictor):
    shown = images("val")[:40]
    rows = embeddings(predictor.model, shown)
    with torch.no_grad():
        probabilities = predictor.model.head(rows).softmax(1)
    largest = threshold(predictor.calibration.scores, 0.95)
    found = predictor(shown, coverage=0.95, unknown=True)
    assert [one.novelty for one in found] == pytest.approx(novelty(predictor.calibration, rows), abs=0.003)
    for one, row in zip(found, probabilities, strict=True):
        assert [name for name, _ in one.prediction_set()] == [str(digit) for digit in prediction_set(row, largest)]
        assert torch.allclose(one.probabilities, row, atol=1e-5)
        assert one.is_unknown == (one.novelty > 0.95)


def test_nineteen_of_twenty_sets_hold_the_digit(predictor):
    found = predictor.with_options(coverage=0.95)(images("val"))
    held = [str(label) in dict(one.prediction_set()) for one, label in zip(found, labels("val"), strict=True)]
    assert 0.92 < np.mean(held) < 0.98


def test_logits_and_embeddings_come_from_one_pass(predictor):
    passes = []
    predictor.model.downsample_layers[0].register_forward_hook(lambda *_: passes.append(1))
    shown = images("val")[:3]
    with_both = predictor(shown, coverage=0.9, unknown=True)
    assert len(passes) == 1
    assert all(torch.equal(one.probabilities, plain.probabilities) for one, plain in zip(with_both, predictor(shown), strict=True))


@pytest.mark.parametrize(
    "name", ["convnext_atto", "convnextv2_atto", "convnext_isotropic_small", "resnet50", "deit_small", "efficientnet_lite0"]
)
def test_every_kind_of_network_gives_both_in_one_pass(name):
    model = convnext.create_model(name, num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = KeepsEmbeddings(model)
    with torch.no_grad():
        assert torch.equal(both(x), model(x))
        head = model.get_submodule(model.head_name)
        assert both.embeddings.shape == (2, head.in_features)
        assert torch.allclose(head(both.embeddings), model(x), rtol=1e-4, atol=1e-5)


def test_an_optimized_network_says_the_same(predictor):
    shown = images("val")[:20]
    exact, fast = (one(shown, coverage=0.9, unknown=True) for one in (predictor, predictor.optimize("float32")))
    assert max(abs(one.novelty - other.novelty) for one, other in zip(exact, fast, strict=True)) < 0.05
    assert sum(list(one.members) == list(other.members) for one, other in zip(exact, fast, strict=True)) >= 19


def test_text_json_and_python_agree(folder, predictor):
    text = run("predict", folder / "digits.safetensors", folder / "photos", "--coverage", "0.95", "--unknown").stdout.splitlines()
    values = json.loads(run("predict", folder / "digits.safetensors", folder / "photos", "--coverage", 0.95, "--unknown", "--json").stdout)
    predicted = convnext.predict(folder / "digits.safetensors", folder / "photos", coverage=0.95, unknown=True, device="cpu").predictions
    for line, value in zip(text, values, strict=True):
        one = predicted[value["image"]]
        assert value["coverage"] == 0.95
        assert {row["class"]: row["probability"] for row in value["set"]} == dict(one.prediction_set())
        assert (value["novelty"], value["unknown"]) == (one.novelty, one.is_unknown)
        assert len(value["top"]) == 5
        listed = "  ".join(f"{name} {probability:.1%}" for name, probability in one.prediction_set())
        end = ": unlike the training images" if one.is_unknown else ""
        assert line == f"{value['image']}  95% set: {listed}  novelty {one.novelty:.2f}{end}"
    assert [value["unknown"] for value in values] == [False, False, False, False, True]
    assert [len(value["set"]) for value in values] == [1, 2, 1, 1, 1]


def test_a_long_set_is_cut_in_text_and_whole_in_json(folder):
    path = folder / "digits.safetensors"
    text = run("predict", path, folder / "photos" / "1.png", "--coverage", "0.995", "--top", "2").stdout
    (value,) = json.loads(run("predict", path, folder / "photos" / "1.png", "--coverage", "0.995", "--json").stdout)
    assert len(value["set"]) > 3
    assert text.rstrip().endswith(f"{value['set'][1]['probability']:.1%}  and {len(value['set']) - 2} more")


def test_files_hold_sets_and_novelty_and_are_resumed_with_the_same_options_only(folder, tmp_path):
    call = ("predict", folder / "digits.safetensors", folder / "photos", "--output")
    run(*call, tmp_path / "a.csv", "--coverage", "0.95", "--unknown")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert list(rows[0]) == ["image", "row", "rows", "class", "probability", "in_set", "novelty", "unknown", "error"]
    assert len(rows) == 6
    assert {row["in_set"] for row in rows} == {"True"}
    run(*call, tmp_path / "b.csv", "--coverage", "0.95", "--top", "3")
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert [row["in_set"] for row in rows[:6]] == ["True", "False", "False", "True", "True", "False"]
    run(*call, tmp_path / "a.jsonl", "--coverage", "0.95")
    for options, says in (
        (("--coverage", "0.9"), "--coverage 0.95 (now 0.9)"),
        ((), "was started with --coverage 0.95: "),
        (("--coverage", "0.95", "--unknown"), "was started with no --unknown: "),
    ):
        assert says in run(*call, tmp_path / "a.jsonl", *options, code=2).stderr
    assert "was started with --unknown: " in run(*call, tmp_path / "a.csv", "--coverage", "0.95", code=2).stderr
    assert "5 of 5 images are done" in run(*call, tmp_path / "a.csv", "--coverage", "0.95", "--unknown").stderr


def test_an_output_of_another_calibration_is_not_resumed(folder, tmp_path):
    path = tmp_path / "digits.safetensors"
    write_fitted(path)
    call = ("predict", path, folder / "photos", "--output")
    run(*call, tmp_path / "asked.jsonl", "--coverage", "0.9")
    run(*call, tmp_path / "plain.jsonl")
    state, about = read_weights(path)
    del state[REFERENCE]
    write_weights(path, state, about, calibrate([0.5] * 30))
    assert "was started with another calibration: " in run(*call, tmp_path / "asked.jsonl", "--coverage", "0.9", code=2).stderr
    assert "5 of 5 images are done" in run(*call, tmp_path / "plain.jsonl").stderr


def test_drawings_say_both(predictor, folder):
    other = Image.open(folder / "photos" / "other.png")
    plain, both = predictor(other), predictor(other, coverage=0.95, unknown=True)
    assert both.lines() == ["95% set:", " 97.8%  3", "novelty 1.00: unlike the training images"]
    assert both.draw(other).size == plain.draw(other).size  # three lines each


def test_mirror_images_change_probabilities_and_not_the_novelty(folder):
    call = ("predict", folder / "digits.safetensors", folder / "photos", "--unknown", "--json")
    plain, mirrored = (json.loads(run(*call, *more).stdout) for more in ((), ("--tta", "flip")))
    assert [one["novelty"] for one in plain] == [one["novelty"] for one in mirrored]
    assert plain[0]["top"] != mirrored[0]["top"]


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ("plain", ["--coverage", "0.9"], "coverage: these weights have no calibration"),
        ("plain", ["--unknown"], "`convnext fit SOURCE --output RUN` makes weights that have one"),
        ("digits", ["--coverage", "1"], "between 0 and 1"),
        ("digits", ["--coverage", "0"], "between 0 and 1"),
        ("digits", ["--coverage", "0.9", "--tta", "flip"], "--coverage can't be used with --tta flip"),
        ("digits", ["--unknown", "--size", "24"], "--unknown can't be used with --size"),
        ("digits", ["--unknown", "--features", "f.npy"], "--features alone writes embeddings"),
    ],
)
def test_what_has_no_answer_is_refused_before_any_image(folder, weights, options, message):
    done = run("predict", folder / f"{weights}.safetensors", folder / "photos", *options, code=2)
    assert message in done.stderr
    assert done.stdout == ""


def test_exported_files_have_sets_and_find_no_unknown_images(folder, tmp_path, predictor):
    pytest.importorskip("onnxruntime")
    convnext.export(folder / "digits.safetensors", "onnx", tmp_path / "digits.onnx")
    exported = convnext.load(tmp_path / "digits.onnx", device="cpu")
    shown = images("val")[:20]
    assert exported.calibration.scores == predictor.calibration.scores
    assert exported.calibration.reference is None
    ours, theirs = (one(shown, coverage=0.95) for one in (predictor, exported))
    assert [one.members for one in ours] == [one.members for one in theirs]
    with pytest.raises(UsageError, match="unknown: .*no embeddings: take the weights that it was exported from"):
        exported(shown, unknown=True)


def test_safetensors_keep_all_of_it_and_another_size_drops_it(folder, tmp_path, predictor, caplog):
    convnext.export(folder / "digits.safetensors", "safetensors", tmp_path / "copy.safetensors")
    copied = convnext.load(tmp_path / "copy.safetensors", device="cpu").calibration
    assert torch.equal(copied.reference, predictor.calibration.reference)
    pytest.importorskip("onnxruntime")
    convnext.export(folder / "digits.safetensors", "onnx", tmp_path / "large.onnx", size=24)
    assert "its calibration is of images of another size" in caplog.text
    assert convnext.load(tmp_path / "large.onnx", device="cpu").calibration is None


def test_other_formats_of_weights_say_that_they_drop_it(folder, tmp_path, caplog):
    run("convert", folder / "digits.safetensors", tmp_path / "timm.safetensors", "--to", "timm")
    assert "is calibrated, which timm's files can't say" in caplog.text


@pytest.mark.parametrize("make", [several, regressor])
def test_networks_of_several_labels_and_of_numbers_find_unknown_images_and_have_no_sets(tmp_path, make):
    path, model, _ = make(tmp_path)
    shown = [sample_image(seed) for seed in range(20)]
    rows = convnext.load(path, device="cpu").features(shown)
    write_weights(path, model.state_dict(), read_weights(path)[1], calibrate([], rows))
    predictor = convnext.load(path, device="cpu")
    found, plain = predictor(shown, unknown=True), predictor(shown)
    assert [one.novelty for one in found] == novelty(predictor.calibration, rows)
    for one, other in zip(found, plain, strict=True):
        assert one.to_json() == other.to_json() | {"novelty": one.novelty, "unknown": one.is_unknown}
        assert one.to_text().startswith(other.to_text() + "  novelty ")
        assert all(row.keys() - {"novelty", "unknown"} == set(convnext.tasks.get(predictor.task).columns) for row in one.rows())
    with pytest.raises(UsageError, match=f"coverage: the task '{predictor.task}' has no such option"):
        predictor(shown, coverage=0.9)


def test_tasks_and_networks_without_it_are_refused(tmp_path):
    path, _, _ = segmenter(tmp_path)
    with pytest.raises(UsageError, match="unknown: the task 'segment' has no such option"):
        convnext.load(path, device="cpu")(sample_image(), unknown=True)
    lenet = convnext.create_model("lenet5", num_classes=10)
    without = Predictor(Loaded(lenet.eval(), HOW, calibration=fitted()[1]), CPU)
    with pytest.raises(UsageError, match="unknown: this network gives predictions but no embeddings"):
        without(images("val")[0], unknown=True)
    with pytest.raises(UsageError, match="coverage: '0.9' is not"):
        without(images("val")[0], coverage="0.9")
