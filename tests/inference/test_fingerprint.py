"""Outputs of two networks, of two sets of options, and of images that were changed: none of them is resumed."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import sample_image
from tiny_models import classifier, detector, segmenter

import convnext
from convnext.cli import app
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import UsageError
from convnext.inference.fingerprint import fingerprint_of
from convnext.models.weights.files import read_weights, write_weights
from convnext.tasks.exported import ExportedNetwork

KINDS = {
    "lines": (classifier, "--output", "found.jsonl"),
    "table": (classifier, "--output", "found.csv"),
    "annotations": (detector, "--output", "found.json"),
    "masks": (segmenter, "--output", "masks"),
    "embeddings": (classifier, "--features", "found.npy"),
    "drawings": (classifier, "--draw", "drawn"),
}


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(4):
        sample_image(i, (40, 36)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def predict(*arguments):
    """`convnext predict`; raises what it would report."""
    app(["predict", *map(str, arguments)], prog_name="convnext", standalone_mode=False)


def retrained(path):
    """The same network with other weights at the same path, as after the same training once more."""
    state, description = read_weights(path)
    write_weights(path, {name: 1.01 * tensor for name, tensor in state.items()}, description)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_another_network_began_is_refused_and_untouched(photos, tmp_path, kind):
    make, option, name = KINDS[kind]
    weights, output = make(tmp_path)[0], tmp_path / name
    first = sorted(photos.iterdir())[:2]
    predict(weights, *first, option, output)
    predict(weights, photos, option, output)  # the same network resumes it
    whole = contents(tmp_path)
    retrained(weights)
    whole[weights] = weights.read_bytes()
    with pytest.raises(UsageError, match=rf"{name.partition('.')[0]}.* was started with other weights.*another one, or add --overwrite"):
        predict(weights, photos, option, output)
    assert contents(tmp_path) == whole
    predict(weights, photos, option, output, "--overwrite")
    assert contents(tmp_path) != whole
    predict(weights, photos, option, output)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (["--top", "2"], [], "--top 2"),
        ([], ["--top", "2"], r"no --top \(now 2\)"),
        (["--top", "2"], ["--top", "1"], r"--top 2 \(now 1\)"),
        ([], ["--optimize", "float32"], r"no --optimize \(now float32\)"),
    ],
)
def test_an_output_that_was_begun_with_other_options_is_refused(photos, tmp_path, first, second, reason):
    weights, output = classifier(tmp_path)[0], tmp_path / "found.jsonl"
    predict(weights, photos / "0.png", "--output", output, *first)
    with pytest.raises(UsageError, match=rf"found\.jsonl was started with {reason}: choose another one"):
        predict(weights, photos, "--output", output, *second)
    assert len(output.read_text().splitlines()) == 1
    predict(weights, photos, "--output", output, *first)
    assert len(output.read_text().splitlines()) == 4


def test_class_names_and_preprocessing_are_of_the_network(photos, tmp_path):
    weights, output = classifier(tmp_path)[0], tmp_path / "found.csv"
    predict(weights, photos, "--output", output)
    state, description = read_weights(weights)
    for change in ({"classes": ["wasp", "bee", "ant"]}, {"preprocessing": description["preprocessing"] | {"crop_ratio": 0.5}}):
        write_weights(weights, state, description | change)
        with pytest.raises(UsageError, match="other class names or preprocessing"):
            predict(weights, photos, "--output", output)


def test_answers_that_nothing_says_whose_they_are_are_refused(photos, tmp_path):
    weights, output = classifier(tmp_path)[0], tmp_path / "found.jsonl"
    output.touch()  # which is nobody's
    predict(weights, photos / "0.png", "--output", output)
    beside = tmp_path / ".found.jsonl.fingerprint"
    whole = beside.read_text()
    for damaged in ("", "[]", "{}", whole[:-20]):
        beside.write_text(damaged)
        with pytest.raises(UsageError, match="is damaged"):
            predict(weights, photos, "--output", output)
    beside.unlink()
    with pytest.raises(UsageError, match=r"found\.jsonl holds answers.*\.found\.jsonl\.fingerprint.*is missing"):
        predict(weights, photos, "--output", output)
    beside.write_text(whole)
    predict(weights, photos, "--output", output)
    assert len(output.read_text().splitlines()) == 4


def test_an_output_of_images_that_were_changed_since_is_refused_until_it_is_begun_anew(photos, tmp_path):
    weights, output = classifier(tmp_path)[0], tmp_path / "found.jsonl"
    predict(weights, photos, "--output", output)
    stale = json.loads(output.read_text().splitlines()[1])
    sample_image(9, (40, 36)).save(photos / "1.png")
    sample_image(9, (40, 36)).save(photos / "new.png")
    later = output.stat().st_mtime_ns + 10**9  # whatever the file system's clock counts in
    os.utime(photos / "1.png", ns=(later, later))
    for _ in range(2):  # a refusal does not make the output look newer
        with pytest.raises(UsageError, match=r"1\.png was changed since .*found\.jsonl was written"):
            predict(weights, photos, "--output", output)
    predict(weights, photos / "0.png", "--output", output)  # not asked for
    predict(weights, photos, "--output", output, "--overwrite")
    assert json.loads(output.read_text().splitlines()[1]) != stale


def test_a_call_that_is_refused_notes_no_network_for_its_drawings(photos, tmp_path):
    one, other = classifier(tmp_path)[0], tmp_path / "other.safetensors"
    other.write_bytes(one.read_bytes())
    retrained(other)
    predict(one, photos, "--output", tmp_path / "found.jsonl")
    with pytest.raises(UsageError, match="other weights"):
        predict(other, photos, "--output", tmp_path / "found.jsonl", "--draw", tmp_path / "drawn")
    predict(one, photos, "--output", tmp_path / "found.jsonl", "--draw", tmp_path / "drawn")


@pytest.mark.slow
def test_a_network_has_one_fingerprint_in_each_process_and_file_and_differs_from_others(tmp_path):
    path = classifier(tmp_path)[0]
    again = tmp_path / "again.safetensors"
    again.write_bytes(path.read_bytes())
    code = "import sys, convnext; from convnext.inference.fingerprint import fingerprint_of; print(fingerprint_of(convnext.load(sys.argv[1]), {}))"
    found = subprocess.run([sys.executable, "-c", code, str(again)], capture_output=True, text=True, check=True).stdout.strip()
    predictor = convnext.load(path, device="cpu")
    ours = fingerprint_of(predictor, {})
    assert found == str(ours)
    assert fingerprint_of(predictor, {"top": None}) == ours != fingerprint_of(predictor, {"top": 1})
    with torch.no_grad():  # the least change of one weight
        weight = next(predictor.model.parameters()).view(-1)[:1]
        weight.copy_(torch.from_numpy(np.nextafter(weight.numpy(), np.float32(9))))
    assert fingerprint_of(predictor, {}).differences(ours) == ["other weights"]


def test_exported_networks_count_by_their_files(tmp_path):
    def weights(path):
        network = ExportedNetwork(lambda x: [x], {"graph": {"num_classes": 3}, "model": {"name": "convnext_atto"}}, path)
        names = ["a", "b", "c"]
        predictor = SimpleNamespace(
            model=network, task="classify", classes=names, class_ids=None, preprocessing=ClassifyPreprocessing(), options={}
        )
        return fingerprint_of(predictor, {}).weights

    for name in ("out.onnx", "out.xml", "out.bin"):
        (tmp_path / name).write_text(name)
    onnx, openvino = weights(tmp_path / "out.onnx"), weights(tmp_path / "out.xml")
    (tmp_path / "out.bin").write_text("OpenVINO keeps the weights here")
    assert weights(tmp_path / "out.onnx") == onnx != openvino
    assert weights(tmp_path / "out.xml") != openvino
