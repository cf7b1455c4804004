"""Prediction of many images as a user starts it, stops it and kills it."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import sample_image
from killing import KILLER
from PIL import Image
from tiny_models import CLASSES, classifier, detector, segmenter

import convnext
from convnext.data.annotations.coco_file import read_coco
from convnext.inference.bulk import predict_all
from convnext.inference.embeddings import FeaturesOutput
from convnext.inference.inputs import find_items
from convnext.inference.outputs import Drawings, open_output


def many(folder, count, kinds):
    """Tiny images, of which every hundredth is corrupt; each is one of so many kinds, which its name says."""
    contents = []
    for kind in range(kinds):
        path = folder.parent / f"kind-{kind}.png"
        sample_image(kind, (24, 20)).save(path)
        contents.append(path.read_bytes())
    folder.mkdir()
    for i in range(count):
        content = contents[i % kinds]
        (folder / f"{i:05d}-{i % kinds}.png").write_bytes(content[: len(content) // 2] if i % 100 == 50 else content)
    return folder


def killed_twice(tmp_path, count, kinds, ending, *options):
    path, model, how = classifier(tmp_path)
    photos, output = many(tmp_path / "photos", count, kinds), tmp_path / f"found{ending}"
    arguments = [sys.executable, "-c", KILLER, output, f"{count // 3},{2 * count // 3}", "predict", path, photos, "--output", output]
    done = subprocess.run([*map(str, arguments), *options], capture_output=True, text=True, check=False)
    assert done.stdout == "[-9, -9, 0]\n", done.stderr
    wanted = [model(how.transform()(sample_image(kind, (24, 20)))[None]).softmax(1)[0] for kind in range(kinds)]
    return photos, output, wanted, done.stderr


def check_lines(photos, rows, wanted, stderr):
    assert [row["image"] for row in rows] == [str(path) for path in sorted(photos.iterdir())]  # each once, in order
    corrupt = [row["image"] for row in rows if "error" in row]
    assert corrupt == [str(path) for i, path in enumerate(sorted(photos.iterdir())) if i % 100 == 50]
    for row in rows:
        kind = int(row["image"].removesuffix(".png").rpartition("-")[2])
        for one in row.get("top", ()):
            assert one["probability"] == pytest.approx(wanted[kind][CLASSES.index(one["class"])].item(), abs=1e-4)
    assert stderr.count("done already; --overwrite") == 2
    last = stderr.split("done already")[-1]
    assert last.count("skipped: ") == len(corrupt)
    assert all(f"skipped: {name}: " in last for name in corrupt)
    assert f"predicted {len(rows) - len(corrupt)} of {len(rows)} images, skipped {len(corrupt)}" in last


@pytest.mark.slow
def test_killed_twice_and_resumed_each_image_is_in_the_output_once(tmp_path):
    features = tmp_path / "features.npy"
    photos, output, wanted, stderr = killed_twice(tmp_path, 300, 7, ".jsonl", "--batch-size", "8", "--features", str(features))
    check_lines(photos, [json.loads(line) for line in output.read_text().splitlines()], wanted, stderr)
    rows = [json.loads(line) for line in features.with_suffix(".rows.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in sorted(photos.iterdir())]
    assert [row["row"] for row in rows if "row" in row] == list(range(297))
    found = np.load(features)
    assert found.shape == (297, 32)
    predictor = convnext.load(tmp_path / "classify.safetensors", device="cpu")
    alone = predictor.features([sample_image(kind, (24, 20)) for kind in range(7)]).numpy()
    kinds = [int(row["image"].removesuffix(".png").rpartition("-")[2]) for row in rows if "row" in row]
    assert np.allclose(found, alone[kinds], atol=1e-4)


@pytest.mark.slow
def test_ten_thousand_images_killed_twice_are_each_in_the_output_once(tmp_path):
    photos, output, wanted, stderr = killed_twice(tmp_path, 10_000, 50, ".jsonl")
    check_lines(photos, [json.loads(line) for line in output.read_text().splitlines()], wanted, stderr)


@pytest.fixture
def photos(tmp_path):
    """Five images, one of them in a folder, and one that is not an image."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for i, name in enumerate(("7.png", "8.jpg", "9.png", "sub/10.png", "z.png")):
        sample_image(i, (40, 36)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "9.png").write_text("no image")
    return tmp_path / "photos"


def run(predictor, photos, path, kind=None, **options):
    items = find_items([str(photos)])
    outputs = [open_output(path, kind, predictor, items, None, False), Drawings(path.parent / "drawn", items)]
    return predict_all(predictor, items, outputs, **options)


def test_csv_has_a_row_a_finding_and_one_for_what_failed(photos, tmp_path):
    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")
    errors = run(predictor, photos, tmp_path / "found.csv", batch_size=2, threads=3)
    assert list(errors) == [str(photos / "9.png")]
    with open(tmp_path / "found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["row"], row["rows"]) for row in rows[:3]] == [(str(photos / "7.png"), str(i), "3") for i in (1, 2, 3)]
    assert rows[0]["class"] == predictor(photos / "7.png").top()[0][0]
    assert float(rows[0]["probability"]) == pytest.approx(predictor(photos / "7.png").top()[0][1], abs=1e-5)
    assert len(rows) == 4 * 3 + 1
    (failed,) = (row for row in rows if row["error"])
    assert (failed["image"], failed["row"], failed["rows"]) == (str(photos / "9.png"), "0", "0")
    drawn = sorted(str(path.relative_to(tmp_path / "drawn")) for path in (tmp_path / "drawn").rglob("*.jpg"))
    assert drawn == ["7.jpg", "8.jpg", "sub/10.jpg", "z.jpg"]
    with Image.open(tmp_path / "drawn" / "7.jpg") as sheet:
        assert sheet.height > 320  # enlarged, with classes under it


def test_coco_results_are_read_by_cocos_own_evaluation(photos, tmp_path):
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    (photos / "z.png").unlink()
    predictor = convnext.load(detector(tmp_path)[0], device="cpu")
    run(predictor, photos, tmp_path / "found.json", batch_size=3)
    found = {path: predictor(path) for path in (photos / "7.png", photos / "8.jpg", photos / "sub" / "10.png")}
    # The ground truth is what was found, where it has a mask: a perfect score then says that images, classes, boxes and masks fit.
    truth = {"images": [{"id": int(path.stem), "file_name": path.name, "height": 36, "width": 40} for path in found]}
    truth |= {"categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)], "annotations": []}
    for path, prediction in found.items():
        for one in prediction.to_json()["objects"]:
            left, top, right, bottom = one["box"]
            about = {"id": len(truth["annotations"]) + 1, "image_id": int(path.stem), "category_id": CLASSES.index(one["class"]) + 1}
            area = int(mask.area(one["mask"]))
            about |= {"bbox": [left, top, right - left, bottom - top], "area": area, "iscrowd": 0, "segmentation": one["mask"]}
            truth["annotations"] += [about] if area else []
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert read_coco(tmp_path / "truth.json").classes == CLASSES
    results = [one for one in json.loads((tmp_path / "found.json").read_text()) if mask.area(one["segmentation"])]
    assert len(results) == len(truth["annotations"]) > 20
    annotated = COCO(str(tmp_path / "truth.json"))
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(annotated, annotated.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][0, :, :, 0, -1]  # at an overlap of half, of objects of all sizes
        assert precision[precision > -1].mean() > 0.99


def test_masks_are_files_of_classes_with_a_list_of_what_is_whose(photos, tmp_path):
    predictor = convnext.load(segmenter(tmp_path)[0], device="cpu")
    errors = run(predictor, photos, tmp_path / "masks")
    rows = [json.loads(line) for line in (tmp_path / "masks" / "predictions.jsonl").read_text().splitlines()]
    assert [row.get("mask") for row in rows] == ["7.png", "8.png", None, "sub/10.png", "z.png"]
    assert rows[2]["error"] == errors[rows[2]["image"]]
    for row in rows[:2] + rows[3:]:
        with Image.open(tmp_path / "masks" / row["mask"]) as mask:
            assert (np.asarray(mask) == predictor(row["image"]).mask.numpy()).mean() > 0.99
    before = (tmp_path / "masks" / "7.png").stat().st_mtime_ns
    assert run(predictor, photos, tmp_path / "masks") == errors
    assert (tmp_path / "masks" / "7.png").stat().st_mtime_ns == before  # nothing is done twice


def test_a_image_that_the_network_refuses_stops_no_other_of_its_batch(photos, tmp_path):
    sample_image(0, (20, 4)).save(photos / "8.png")  # too small for a network of stride 32
    predictor = convnext.load(segmenter(tmp_path)[0], device="cpu")
    errors = run(predictor, photos, tmp_path / "found.jsonl", batch_size=6)
    assert sorted(errors) == [str(photos / "8.png"), str(photos / "9.png")]
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 6


def test_embeddings_as_a_parquet_table_grow_with_the_folder(photos, tmp_path):
    from pyarrow import parquet

    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")
    for count in (4, 5):
        output = FeaturesOutput(tmp_path / "found.parquet")
        predict_all(predictor, find_items([str(photos)]), [output], batch_size=2)
        table = parquet.read_table(tmp_path / "found.parquet").to_pydict()
        assert len(table["image"]) == count
        for name, features in zip(table["image"], table["features"], strict=True):
            assert np.allclose(features, predictor.features(name)[0], atol=1e-4)
        sample_image(9, (40, 36)).save(photos / "zz.png")
        del output  # and with it the lock on its files


@pytest.mark.slow
def test_a_list_from_standard_input_goes_through_the_command_line(photos, tmp_path):
    path, found = classifier(tmp_path)[0], tmp_path / "found.jsonl"
    command = [sys.executable, "-m", "convnext", "predict", str(path), "-", "--output", str(found), "--draw", str(tmp_path / "drawn")]
    listed = f"{photos}/7.png\n{photos}/gone.png\n"
    done = subprocess.run(command, input=listed, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "predicted 1 of 2 images, skipped 1" in done.stderr
    assert [sorted(json.loads(line)) for line in found.read_text().splitlines()] == [["image", "top"], ["error", "image"]]
    assert [path.name for path in (tmp_path / "drawn").glob("*.jpg")] == ["7.jpg"]
