"""LabelMe's JSON to COCO's JSON and back through `CocoSource`; what is skipped is counted."""

import base64
import io
import json

import numpy as np
import pytest
from helpers import sample_image
from PIL import Image

from convnext.data.convert.labelme import labelme_to_coco
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check
from convnext.errors import ConvnextError, UsageError


def shape(label, points, kind="polygon", group=None, **more):
    return {"label": label, "points": points, "group_id": group, "description": "", "shape_type": kind, "flags": {}, "mask": None} | more


SQUARE = shape("cat", [[10.0, 10.0], [30.0, 10.0], [30.0, 20.0], [10.0, 20.0]])
BOX = shape("dog", [[30.0, 40.0], [10.0, 20.0]], "rectangle")


def labelme(root, **shapes):
    """A folder of images of 60 x 50, each with the JSON of its shapes beside it."""
    for name, ones in shapes.items():
        sample_image(0, (60, 50)).save(root / f"{name}.jpg")
        content = {"version": "5.4.1", "flags": {}, "shapes": ones, "imagePath": f"{name}.jpg", "imageData": "aGVsbG8="}
        (root / f"{name}.json").write_text(json.dumps(content | {"imageHeight": 50, "imageWidth": 60}, indent=2))
    return root


def change(file, **keys):
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def reread(found, folder, root):
    (root / "out.json").write_text(json.dumps(found.content))
    source = CocoSource(root / "out.json", folder)
    assert check(source) == []
    return source


def png(mask):
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_shapes(tmp_path):
    mask = np.array([[True, True, True], [False, True, False]])
    circle = shape("dog", [[30.0, 25.0], [30.0, 35.0]], "circle")
    folder = labelme(tmp_path, a=[SQUARE, shape("cat", [[40, 30], [42, 31]], "mask", mask=png(mask)), circle], b=[])
    found = labelme_to_coco(folder, folder)
    source = reread(found, folder, tmp_path)
    assert source.classes == ["cat", "dog"]
    assert source.paths == ["a.jpg", "b.jpg"]
    objects = source.target(0)
    assert np.allclose(objects.boxes, [[10, 10, 30, 20], [40, 30, 43, 32], [20, 15, 40, 35]], atol=1e-3)
    assert np.allclose(objects.area, [200, 4, np.pi * 100], rtol=0.003)
    assert objects.masks[1, 30:32, 40:43].tolist() == mask.astype(int).tolist()
    assert found.remarks == []


def test_a_group_of_one_class_is_one_object(tmp_path):
    mask = shape("cat", [[40, 30], [42, 31]], "mask", 1, mask=png(np.ones((2, 3), bool)))
    corner = shape("cat", [[50, 40], [60, 50]], "rectangle", 1)
    folder = labelme(
        tmp_path, a=[SQUARE | {"group_id": 1}, corner, SQUARE | {"label": "dog", "group_id": 1}, SQUARE], b=[SQUARE | {"group_id": 1}, mask]
    )
    source = reread(labelme_to_coco(folder, folder), folder, tmp_path)
    assert source.target(0).labels.tolist() == [0, 1, 0]
    assert source.target(0).boxes[0].tolist() == [10, 10, 60, 50]
    assert source.target(0).masks.sum(dim=(1, 2)).tolist() == [300, 200, 200]
    assert source.target(1).masks.sum() == 206
    assert source.target(1).area.tolist() == [206]


def test_boxes_alone_have_no_masks(tmp_path):
    folder = labelme(tmp_path, a=[BOX, BOX], b=[SQUARE])
    found = labelme_to_coco(folder, folder)
    assert found.content["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [10, 20, 20, 20],
        "area": 400,
        "iscrowd": 0,
    }
    assert found.remarks == ["2 of 3 objects have a box and no mask: data.masks_from_boxes=true takes the box"]


def test_the_image_is_found_and_opened_where_the_size_is_missing(tmp_path):
    folder = labelme(tmp_path, a=[BOX], b=[BOX], c=[BOX])
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / f"{name}.jpg").rename(tmp_path / "images" / f"{name}.jpg")
    change(folder / "a.json", imagePath="..\\photos\\a.jpg", imageWidth=None, imageHeight=None)
    change(folder / "b.json", imagePath="gone.jpg")
    found = labelme_to_coco(folder, folder / "images")
    assert found.content["images"][0] == {"id": 1, "file_name": "a.jpg", "width": 60, "height": 50}
    assert found.remarks == [f"skipped {folder}/b.json: no image 'gone.jpg' in {folder}/images"]
    change(folder / "b.json", imagePath="c.jpg")
    assert "c.jpg is annotated in" in labelme_to_coco(folder, folder / "images").remarks[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape("", [[1, 1], [2, 2], [3, 1]]), "it has no label"),
        (shape("cat", [[1, 1], [2, 2]]), "polygon of 2 points"),
        (shape("cat", [[1, 1], [2, "x"], [2, 3]]), "y is not a number: 'x'"),
        (shape("cat", None), "points are not a list"),
        (shape("cat", [[70, 60], [80, 60], [80, 70]]), "polygon without area in an image of 60 x 50"),
        (shape("cat", [[1, 1]], "circle"), "it has 1 point"),
        (shape("cat", [[1, 1], [2, 2]], "mask", mask="!"), "not a PNG in base64"),
        (shape("cat", [[1, 1], [2, 2]], "mask", mask="aGVsbG8="), "not a PNG in base64"),
        (shape("cat", [[1, 1], [2, 2]], "star"), "unknown kind of shape"),
        ("text", "shape 1: not a JSON object"),
    ],
)
def test_an_invalid_shape_is_skipped_and_reported(tmp_path, bad, message):
    found = labelme_to_coco(labelme(tmp_path, a=[BOX, bad]), tmp_path)
    assert len(found.content["annotations"]) == 1
    assert message in found.remarks[0]
    assert found.remarks[0].startswith(f"skipped {tmp_path}/a.json, shape 1")


def test_lines_and_points_are_counted(tmp_path):
    others = [shape("cat", [[1, 1], [2, 2]], "linestrip"), shape("cat", [[1, 1]], "point"), shape("cat", [[1, 1]], "point")]
    assert labelme_to_coco(labelme(tmp_path, a=[BOX, *others]), tmp_path).remarks == ["skipped what is no object: 1 linestrip, 2 point"]


def test_files_that_are_not_labelmes(tmp_path):
    folder = labelme(tmp_path, a=[BOX], b=[])
    (folder / "b.json").write_text("[")
    assert "b.json is not JSON" in labelme_to_coco(folder, folder).remarks[0]
    (folder / "b.json").write_text("[" * 100_000)
    assert "b.json is not JSON" in labelme_to_coco(folder, folder).remarks[0]
    (folder / "b.json").write_text('{"images": [], "categories": [], "annotations": []}')
    assert labelme_to_coco(folder, folder).remarks == [f"skipped {folder}/b.json: not a JSON of LabelMe"]
    with pytest.raises(UsageError, match="it looks like COCO, which needs no conversion"):
        labelme_to_coco(folder / "b.json", folder)
    with pytest.raises(UsageError, match="no JSON files of LabelMe"):
        labelme_to_coco(folder / "nowhere", folder)
    (folder / "a.json").write_text("{")
    with pytest.raises(ConvnextError):
        labelme_to_coco(folder / "a.json", folder)
