"""`convnext.predict`, `convnext.evaluate` and `convnext.export` as a program calls them."""

import json
import subprocess
import sys

import pytest
from helpers import image_folder, sample_image
from tiny_models import CLASSES, classifier, detector, segmenter

import convnext
from convnext.errors import UsageError


@pytest.fixture
def photos(tmp_path):
    folder = image_folder(tmp_path / "photos", CLASSES, each=2)
    (folder / CLASSES[0] / "bad.png").write_text("not an image")
    return folder


def test_predictions_are_returned_by_image_with_the_reasons_for_those_that_failed(tmp_path, photos):
    weights = classifier(tmp_path)[0]
    found = convnext.predict(weights, [photos], device="cpu", batch_size=2)
    assert len(found.predictions) == 6
    assert list(found.errors) == [str(photos / CLASSES[0] / "bad.png")]
    predictor = convnext.load(weights, device="cpu")
    for path, prediction in found.predictions.items():
        assert prediction.to_json()["top"][0]["class"] == predictor(path).top()[0][0]
    assert convnext.predict(predictor, photos).predictions.keys() == found.predictions.keys()


def test_predictions_are_written_and_a_second_call_resumes_the_file(tmp_path, photos):
    weights, output, counts = classifier(tmp_path)[0], tmp_path / "found.jsonl", []
    for sources in (photos / CLASSES[1], photos):
        found = convnext.predict(weights, sources, output, top=1, device="cpu", progress=lambda done, total: counts.append((done, total)))
        assert found.predictions == {}
    assert (counts[0], counts[-1]) == ((0, 2), (7, 7))
    assert (2, 7) in counts
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 7
    assert {len(row["top"]) for row in rows if "top" in row} == {1}
    assert [row["image"] for row in rows if "error" in row] == list(found.errors)
    with pytest.raises(UsageError, match=r"was started with --top 1 \(now 2\)"):
        convnext.predict(weights, photos, output, top=2, device="cpu")


def test_every_kind_of_output_is_a_keyword(tmp_path, photos):
    photos = photos / CLASSES[1]  # COCO's results need images with different names
    made = {name: tmp_path / name for name in ("found.json", "found.npy", "drawn", "masks")}
    convnext.predict(detector(tmp_path)[0], photos, made["found.json"], features=made["found.npy"], draw=made["drawn"], device="cpu")
    convnext.predict(segmenter(tmp_path)[0], photos, made["masks"], kind="masks", device="cpu")
    assert isinstance(json.loads(made["found.json"].read_text()), list)
    assert len(list(made["drawn"].rglob("*.jpg"))) == len(list(made["masks"].rglob("*.png"))) == 2


def test_an_evaluation_is_returned_with_its_metrics(tmp_path, photos):
    found = convnext.evaluate(classifier(tmp_path)[0], photos, workers=0, max_corrupt=0.5, device="cpu")
    assert found.result.metrics["count"] == 6
    assert len(found.result.corrupt) == 1
    assert found.summary_line() in found.to_text()
    with pytest.raises(UsageError, match="--multi-scale is a test of segmenters, and this network's task is classify"):
        convnext.evaluate(classifier(tmp_path)[0], photos, multi_scale=True, device="cpu")
    with pytest.raises(UsageError, match="say with --data"):
        convnext.evaluate(classifier(tmp_path)[0], device="cpu")


def test_an_exported_file_predicts_like_its_network(tmp_path):
    weights, image = classifier(tmp_path)[0], sample_image()
    result = convnext.export(weights, "onnx", str(tmp_path / "out.onnx"))
    assert (result.to, result.task, result.size) == ("onnx", "classify", None)
    first, second = (convnext.load(path, device="cpu")(image).top(3) for path in (weights, tmp_path / "out.onnx"))
    assert [name for name, _ in first] == [name for name, _ in second]


def test_functions_and_subpackages_of_one_name_live_together():
    code = """if True:
        import sys, convnext
        assert "torch" not in sys.modules
        import convnext.export, convnext.evaluate
        from convnext.export.runtimes import open_exported
        from convnext.export import check
        from convnext.evaluate import Evaluated
        from convnext import evaluate, export, predict
        for name in ("evaluate", "export", "predict"):
            assert callable(getattr(convnext, name)) and name in dir(convnext) and name in convnext.__all__, name
        assert export.__module__ == "convnext.export.export"
        convnext.custom = 1
        assert convnext.custom == 1
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
