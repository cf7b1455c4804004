"""Detections as datasets of labelling tools: written once, resumed, and imported by the libraries that read such files."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_datasets import SIZE
from helpers import sample_image
from pycocotools.coco import COCO
from tiny_models import CLASSES, detector

import convnext
from convnext.data.convert.formats import convert
from convnext.data.convert.write.formats import FORMATS
from convnext.data.run_lengths import decode, encode, from_segmentation
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check
from convnext.errors import UsageError
from convnext.inference.bulk import predict_all
from convnext.inference.fingerprint import fingerprint_of
from convnext.inference.inputs import find_items
from convnext.inference.outputs import open_output

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own

NAMES = ("a b.jpg", "sub/x.jpg", "y.jpg")
TOP = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A detector, the folder of its images, what it finds there, by the images' names in a dataset, and the lines that say so."""
    root = tmp_path_factory.mktemp("detections")
    for i, name in enumerate(NAMES):
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        sample_image(i, SIZE).save(root / "photos" / name)
    predictor = convnext.load(detector(root, class_ids=[4, 9, 2])[0], device="cpu")
    predict(predictor, root / "photos", root / "found.xml", "cvat")
    rows = [json.loads(line) for line in (root / "found.jsonl").read_text().splitlines()]
    for one in (one for row in rows for one in row["objects"]):  # masks as of a trained network
        assert one["mask"]["size"] == [SIZE[1], SIZE[0]]
        one["mask"] = ellipse(*one["box"])
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return predictor, root / "photos", {row["file_name"]: row["objects"] for row in rows}, lines


def ellipse(left, top, right, bottom):
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    distance = ((2 * x - left - right) / (right - left)) ** 2 + ((2 * y - top - bottom) / (bottom - top)) ** 2
    return encode(torch.from_numpy(distance < 1))


def predict(predictor, folder, output, kind, items=None, overwrite=False):
    items = find_items([str(folder)]) if items is None else items
    predict_all(
        predictor, items, [open_output(output, kind, predictor, items, TOP, overwrite, fingerprint_of(predictor, {}))], batch_size=1
    )


def write(made, root, kind, annotations=None):
    """The output of a call that resumes the lines of another, which had predicted all images."""
    predictor, folder, _, lines = made
    output = path_of(kind, root)
    journal = journal_of(output)
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text(lines)
    items = find_items([str(folder)])
    predict_all(predictor, items, [open_output(output, kind, predictor, items, TOP, False, annotations=annotations)])
    return output


def path_of(kind, root):
    return root / f"found{FORMATS[kind].ending or ''}"


def journal_of(output):
    return output.with_suffix(".jsonl") if output.suffix else output / "predictions.jsonl"


def pixels(segmentation):
    return decode(from_segmentation(segmentation, SIZE[1], SIZE[0])).numpy().astype(bool)


def test_a_coco_dataset_has_what_was_found(made, tmp_path):
    _, folder, found, _ = made
    write(made, tmp_path, "coco-dataset")
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(str(tmp_path / "found.json"))
        results = dataset.loadRes([{**one, "id": None} for one in dataset.anns.values()])  # its annotations are results too
    assert {one["file_name"] for one in dataset.imgs.values()} == set(NAMES)
    assert {one["name"]: one["id"] for one in dataset.cats.values()} == dict(zip(CLASSES, [4, 9, 2], strict=True))
    for key, image in dataset.imgs.items():
        ones = found[image["file_name"]]
        assert len(dataset.imgToAnns[key]) == len(results.imgToAnns[key]) == len(ones)
        for one, wanted in zip(dataset.imgToAnns[key], ones, strict=True):
            left, top, right, bottom = wanted["box"]
            assert one["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.01)
            assert (one["score"], dataset.cats[one["category_id"]]["name"]) == (wanted["score"], wanted["class"])
            assert (dataset.annToMask(one) == pixels(wanted["mask"])).all()
    source = CocoSource(tmp_path / "found.json", folder)
    assert [problem for problem in check(source) if "does not fit its box" not in problem] == []


def test_a_coco_dataset_has_the_names_and_ids_of_an_annotation_file(made, tmp_path):
    listed = {
        "images": [{"id": 70 + i, "file_name": f"set/{name}"} for i, name in enumerate(NAMES)],
        "categories": [{"id": key, "name": name} for key, name in ((1, "wasp"), (5, "ant"), (6, "bee"), (8, "fly"))],
    }
    (tmp_path / "ann.json").write_text(json.dumps(listed))
    write(made, tmp_path, "coco-dataset", tmp_path / "ann.json")
    content = json.loads((tmp_path / "found.json").read_text())
    assert {one["file_name"]: one["id"] for one in content["images"]} == {one["file_name"]: one["id"] for one in listed["images"]}
    assert [(one["id"], one["name"]) for one in content["categories"]] == [(1, "wasp"), (5, "ant"), (6, "bee"), (8, "fly")]
    assert {one["image_id"] for one in content["annotations"]} <= {70, 71, 72}
    with pytest.raises(UsageError, match="--annotations is for COCO's results"):
        write(made, tmp_path, "yolo", tmp_path / "ann.json")


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "coco-dataset"])
def test_our_reader_finds_the_same_objects(made, tmp_path, kind):
    _, folder, found, _ = made
    output = write(made, tmp_path, kind)
    if kind == "label-studio":  # predictions, which are no annotations until somebody accepts them
        text = output.read_text()
        assert text.count('"predictions"') == len(NAMES)
        output.write_text(text.replace('"predictions"', '"annotations"'))
    source = {"yolo": output / "images", "labelme": output / "labels"}.get(kind, output)
    content = convert(kind, source, images=folder if kind in ("cvat", "label-studio") else None)[0].content
    names = {one["id"]: one["name"] for one in content["categories"]}
    assert {one["file_name"] for one in content["images"]} == set(NAMES)
    for image in content["images"]:
        ones = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        wanted = found[image["file_name"]]
        assert [names[one["category_id"]] for one in ones] == [one["class"] for one in wanted]
        for one, other in zip(ones, wanted, strict=True):
            if kind != "voc":
                mask, mask_after = pixels(other["mask"]), pixels(one["segmentation"])
                assert (mask & mask_after).sum() / (mask | mask_after).sum() >= 0.98
    if kind in ("cvat", "labelme", "label-studio"):
        files = output.rglob("labels/**/*.json") if kind == "labelme" else [output]
        text = "".join(file.read_text() for file in files)
        assert all(f"{one['score']:g}" in text for ones in found.values() for one in ones)


@pytest.mark.parametrize("kind", ["coco-dataset", "yolo"])  # a file and a folder
def test_a_call_that_was_killed_continues_and_predicts_each_image_once(made, tmp_path, kind, monkeypatch):
    predictor, folder, _, _ = made
    whole, cut = path_of(kind, tmp_path / "whole"), path_of(kind, tmp_path / "cut")
    predict(predictor, folder, whole, kind)
    predict(predictor, folder, cut, kind, find_items([str(folder)])[:2])
    journal = journal_of(cut)
    journal.write_bytes(journal.read_bytes()[:-9])  # within the second line
    seen = []
    infer = type(predictor).infer
    monkeypatch.setattr(type(predictor), "infer", lambda self, images: seen.extend(images) or infer(self, images))
    predict(predictor, folder, cut, kind)
    predict(predictor, folder, cut, kind)
    assert len(seen) == 2
    assert content(cut.parent) == content(whole.parent)


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_what_is_there_is_resumed_or_refused(made, tmp_path):
    predictor, folder, _, _ = made
    (tmp_path / "other" / "labels").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"labels exists already, but .*predictions\.jsonl, which resumes it, does not"):
        predict(predictor, folder, tmp_path / "other", "yolo")
    (tmp_path / "found.jsonl").write_text('{"image": "x.jpg", "objects": []}\n')
    with pytest.raises(UsageError, match="has lines without the sizes of images, as of another format"):
        open_output(tmp_path / "found.xml", None, predictor, [], TOP, False)
    (item,) = items = find_items([str(folder / "y.jpg")])
    predict(predictor, folder, tmp_path / "found.xml", None, items, overwrite=True)
    assert open_output(tmp_path / "found.json", "label-studio", predictor, items, TOP, False).done == {item.name: None}
    with pytest.raises(UsageError, match="was started with no --optimize"):
        open_output(tmp_path / "found.xml", None, predictor, [], None, False, fingerprint_of(predictor, {"optimize": "int8"}))


@pytest.mark.parametrize("kind", ["labelme", "cvat"])
def test_what_somebody_corrected_is_not_replaced(made, tmp_path, kind):
    predictor, folder, _, _ = made
    output = write(made, tmp_path, kind)
    file = output / "labels" / "y.json" if kind == "labelme" else output
    open_output(output, kind, predictor, [], TOP, False)
    file.write_text("corrected")
    later = journal_of(output).stat().st_mtime + 60
    os.utime(file, (later, later))
    with pytest.raises(UsageError, match=f"{file.name} was changed after `convnext predict` wrote it: choose another output, or add --ov"):
        open_output(output, kind, predictor, find_items([str(folder)]), TOP, False)
    assert file.read_text() == "corrected"


def test_what_could_not_be_written_is_refused_before_anything_is_predicted(made, tmp_path):
    predictor, folder, _, _ = made
    for name in ("a/x.jpg", "b/x.jpg", "c/x.png", "c/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sample_image(0, SIZE).save(tmp_path / name)
    for sources, kind, message in (
        (["a", "b"], "yolo", r"a/x\.jpg and .*b/x\.jpg would both be x\.txt in the dataset"),
        (["a", "b"], "cvat", r"would both be x\.jpg in the dataset"),
        (["c"], "voc", r"c/x\.jpg and .*c/x\.png would both be x\.xml"),
    ):
        with pytest.raises(UsageError, match=message):
            predict(predictor, None, path_of(kind, tmp_path), kind, find_items([str(tmp_path / source) for source in sources]))
    with pytest.raises(UsageError, match="is the folder of the images: choose another output folder"):
        predict(predictor, tmp_path / "a", tmp_path / "a", "yolo")
    for name, kind, message in (("x.json", "cvat", "written to a .xml file"), ("x.txt", "yolo", "written to a folder, with labels/")):
        with pytest.raises(UsageError, match=message):
            predict(predictor, folder, tmp_path / name, kind)
    assert not list(tmp_path.glob("x.*")) + list(tmp_path.glob("found*"))


def test_a_detector_of_boxes_and_an_image_that_cant_be_read(tmp_path, caplog):
    predictor = convnext.load(detector(tmp_path, masks=False)[0], device="cpu")
    (tmp_path / "photos").mkdir()
    sample_image(0, SIZE).save(tmp_path / "photos" / "x.jpg")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    predict(predictor, tmp_path / "photos", tmp_path / "found", "yolo")
    assert sorted(path.name for path in (tmp_path / "found" / "labels").iterdir()) == ["x.txt"]
    lines = (tmp_path / "found" / "labels" / "x.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [5] * TOP
    assert f"{TOP} scores" in caplog.text


# What other libraries make of the files. They are imported where they are installed.


def test_supervision_imports_coco_yolo_and_voc(made, tmp_path):
    sv = pytest.importorskip("supervision", reason="pip install supervision, an importer of such datasets")
    _, folder, found, _ = made
    coco = write(made, tmp_path / "coco", "coco-dataset")
    yolo, voc = write(made, tmp_path / "yolo", "yolo"), write(made, tmp_path / "voc", "voc")
    whole = sv.DetectionDataset.from_coco(images_directory_path=str(folder), annotations_path=str(coco), force_masks=True)
    lines = sv.DetectionDataset.from_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"), force_masks=True)
    boxes = sv.DetectionDataset.from_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations"))
    flat = {name for name in NAMES if "/" not in name}
    for dataset, root, names in ((whole, folder, set(NAMES)), (lines, yolo / "images", flat), (boxes, voc / "JPEGImages", flat)):
        assert {str(Path(path).relative_to(root)) for path, _, _ in dataset} == names  # it looks into no folders of YOLO's and VOC's
        for path, _, detections in dataset:
            wanted = found[str(Path(path).relative_to(root))]
            assert [dataset.classes[label] for label in detections.class_id] == [one["class"] for one in wanted]
            if dataset is not lines:
                assert np.allclose(detections.xyxy, [one["box"] for one in wanted], atol=0.02 if dataset is whole else 0.51)
            for one, mask in zip(wanted, () if dataset is boxes else detections.mask, strict=dataset is not boxes):
                exact = pixels(one["mask"])
                assert exact.sum() < 800 or (exact & mask).sum() / (exact | mask).sum() > 0.9  # it fills a pixel around polygons


def test_fiftyone_imports_coco_yolo_voc_and_cvat(made, tmp_path):
    """Its importers alone: a dataset of FiftyOne needs MongoDB."""
    pytest.importorskip("fiftyone", reason="pip install fiftyone, which is too large for the tests' own environment")
    from fiftyone.utils import coco, cvat, voc, yolo

    _, folder, found, _ = made
    output = {kind: write(made, tmp_path / kind, kind) for kind in ("coco-dataset", "yolo", "voc", "cvat")}
    folders = {"data_path": str(output["voc"] / "JPEGImages"), "labels_path": str(output["voc"] / "Annotations")}
    of_coco = {"data_path": str(folder), "labels_path": str(output["coco-dataset"]), "label_types": "segmentations"}
    for importer in (
        coco.COCODetectionDatasetImporter(**of_coco, extra_attrs=True),
        cvat.CVATImageDatasetImporter(data_path=str(folder), labels_path=str(output["cvat"])),
        voc.VOCDetectionDatasetImporter(**folders),
        yolo.YOLOv5DatasetImporter(dataset_dir=str(output["yolo"]), yaml_path="data.yaml", split="val"),
    ):
        with importer:
            read = {
                image: labels["polylines"].polylines if isinstance(labels, dict) else labels.detections for image, _, labels in importer
            }
        assert len(read) == len(NAMES)
        for image, labels in read.items():
            wanted = next(ones for name, ones in found.items() if image.endswith(name))
            assert [one.label for one in labels] == [one["class"] for one in wanted]
            if isinstance(importer, coco.COCODetectionDatasetImporter):
                assert [one.confidence for one in labels] == [one["score"] for one in wanted]
