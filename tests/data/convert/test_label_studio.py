"""Label Studio's export to COCO's JSON and back through `CocoSource`; what is skipped is counted."""

import json

import numpy as np
import pytest
from helpers import sample_image

from convnext.data.convert.label_studio import label_studio_to_coco
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check
from convnext.errors import UsageError

SIZE = {"original_width": 60, "original_height": 50, "image_rotation": 0}


def entry(kind, label, **value):
    names = {"id": "x1", "from_name": "label", "to_name": "image", "origin": "manual", "type": kind}
    return names | SIZE | {"value": value | {kind: [label] if isinstance(label, str) else label}}


BOX = entry("rectanglelabels", "Car", x=10.0, y=20.0, width=50.0, height=40.0, rotation=0)
POLYGON = entry("polygonlabels", "Bus", points=[[10.0, 20.0], [60.0, 20.0], [60.0, 60.0], [10.0, 60.0]], closed=True)


def task(number, image, *annotations, **more):
    done = [{"id": number * 10 + i, "was_cancelled": False, "result": result} for i, result in enumerate(annotations)]
    return {"id": number, "annotations": done, "drafts": [], "predictions": [], "data": {"image": image}, "project": 1} | more


def export(root, *tasks, images=("a.jpg", "b.jpg")):
    (root / "images").mkdir(exist_ok=True)
    for name in images:
        sample_image(0, (60, 50)).save(root / "images" / name)
    (root / "project-1.json").write_text(json.dumps(tasks))
    return root / "project-1.json", root / "images"


def reread(found, folder, root):
    (root / "out.json").write_text(json.dumps(found.content))
    source = CocoSource(root / "out.json", folder)
    assert check(source) == []
    return source


def pack(values, word=8, sizes=(3, 4, 8, 16)):
    """The run lengths of Label Studio's `encode_rle`, with runs only."""
    bits = f"{len(values):032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        bits += f"1{3:02b}{stop - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_boxes_and_polygons(tmp_path):
    turned = entry("rectanglelabels", "Car", x=50.0, y=20.0, width=20.0, height=40.0, rotation=90)
    oval = entry("ellipselabels", "Car", x=50.0, y=50.0, radiusX=10.0, radiusY=20.0, rotation=0)
    found = label_studio_to_coco(*export(tmp_path, task(1, "/data/upload/1/0f3b2a1c-a.jpg", [POLYGON, turned, oval]), task(2, "b.jpg", [])))
    source = reread(found, tmp_path / "images", tmp_path)
    assert source.classes == ["Bus", "Car"]
    assert source.paths == ["a.jpg", "b.jpg"]
    objects = source.target(0)
    # A box of 12 x 20 pixels at 30, 10 that is turned by 90 degrees about this corner lies to its left.
    assert np.allclose(objects.boxes, [[6, 10, 36, 30], [10, 10, 30, 22], [24, 15, 36, 35]], atol=1e-3)
    assert np.allclose(objects.area, [600, 240, np.pi * 60], rtol=0.003)
    assert len(source.target(1)) == 0
    assert found.remarks == []


def test_brushes(tmp_path):
    mask = np.zeros((50, 60), np.int64)
    mask[10:20, 5:25] = 1
    values = np.repeat(mask.ravel() * 255, 4)
    brush = entry("brushlabels", "Car", format="rle", rle=pack(values))
    source = reread(label_studio_to_coco(*export(tmp_path, task(1, "a.jpg", [brush]))), tmp_path / "images", tmp_path)
    assert (source.target(0).masks[0].numpy() == mask).all()
    assert source.target(0).boxes.tolist() == [[5, 10, 25, 20]]


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/3/a.jpg",
        "/data/local-files/?d=photos/street/a.jpg",
        r"/data/local-files/?d=photos\street\a.jpg",
        "s3://bucket/street/a.jpg",
        "https://example.org/street/a.jpg?size=large&v=2",
        "/data/upload/3/0f3b2a1c-a.jpg",
        "/data/upload/3/0f3b2a1c-a%2Ejpg",
    ],
)
def test_images_are_found_by_the_end_of_their_address(tmp_path, address):
    found = label_studio_to_coco(*export(tmp_path, task(1, address, [BOX])))
    assert [image["file_name"] for image in found.content["images"]] == ["a.jpg"]
    assert found.content["annotations"][0]["bbox"] == [6, 10, 30, 20]


def test_the_last_annotation_counts_that_was_not_cancelled(tmp_path):
    first = task(1, "a.jpg", [BOX], [POLYGON], [BOX, BOX])
    first["annotations"][2]["was_cancelled"] = True
    skipped = task(2, "b.jpg", [BOX])
    skipped["annotations"][0]["was_cancelled"] = True
    found = label_studio_to_coco(*export(tmp_path, first, skipped, task(3, "c.jpg")))
    assert [image["file_name"] for image in found.content["images"]] == ["a.jpg"]
    assert [category["name"] for category in found.content["categories"]] == ["Bus"]
    assert found.remarks == ["skipped 2 tasks without an annotation, or with a cancelled one"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry("rectanglelabels", [], x=1, y=1, width=1, height=1), "rectanglelabels without a label"),
        (entry("rectanglelabels", ["Car", "Bus"], x=1, y=1, width=1, height=1), "with 2 labels"),
        (entry("rectanglelabels", "Car", x=1, y=1, width=0, height=1), "has no area"),
        (entry("rectanglelabels", "Car", x=1, y=1, width=None, height=1), "width is not a number: None"),
        (BOX | {"image_rotation": 90}, "turned by 90 degrees"),
        (entry("brushlabels", "Car", format="rle", rle=[0, 0, 0, 9]), "the mask's rle has 9 values, its image 12000"),
        (entry("brushlabels", "Car", format="rle", rle=pack(np.zeros(12000, np.int64))[:-3]), "ends before its last pixel"),
        (entry("brushlabels", "Car", format="rle", rle="x"), "not a list of bytes"),
        (BOX | {"value": None}, "without a value"),
    ],
)
def test_an_invalid_entry_is_skipped_and_reported(tmp_path, bad, message):
    found = label_studio_to_coco(*export(tmp_path, task(4, "a.jpg", [BOX, bad])))
    assert len(found.content["annotations"]) == 1
    assert message in found.remarks[0]
    assert found.remarks[0].startswith(f"skipped {tmp_path}/project-1.json, task 4, a.jpg: ")


def test_what_is_no_object_is_counted(tmp_path):
    others = [entry("choices", "outdoor"), entry("keypointlabels", "nose", x=1, y=2, width=0.3), entry("choices", "sunny")]
    found = label_studio_to_coco(*export(tmp_path, task(1, "a.jpg", [BOX, *others]), task(2, "gone.jpg", [BOX])))
    assert found.remarks[0] == "skipped what is no object: 2 choices, 1 keypointlabels"
    assert "task 2: no image, or more than one, for 'gone.jpg'" in found.remarks[1]


def test_other_exports_are_refused_with_the_one_to_choose(tmp_path):
    small = {"image": "a.jpg", "id": 1, "label": [BOX["value"]], "annotator": 1, "annotation_id": 1, "lead_time": 5.1}
    with pytest.raises(UsageError, match="is the export JSON_MIN, .*choose the export 'JSON'"):
        label_studio_to_coco(*export(tmp_path, small))
    with pytest.raises(UsageError, match="lists tasks without annotations"):
        label_studio_to_coco(*export(tmp_path, {"data": {"image": "a.jpg"}}))
    file, images = export(tmp_path)
    file.write_text('{"shapes": []}')
    with pytest.raises(UsageError, match="it looks like LabelMe: convnext data convert labelme FOLDER"):
        label_studio_to_coco(file, images)
