"""The images of an annotation file: paths of other machines, sizes as stored, and names of datasets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from convnext.data.annotations.coco_images import found_in
from convnext.data.deep import DeepImage
from convnext.data.images import CorruptImageError
from convnext.data.sources.coco import CocoSource, _split
from convnext.data.sources.coco_check import check


def test_paths_of_other_machines_are_found_by_their_ends(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("0.png", "a/1.png", "x\\2.png"):
        (tmp_path / name).touch()
    given = ["img\\0.png", "C:\\data\\a\\1.png", "/data/upload/a/1.png", "x\\2.png", "b/1.png", "./0.png", "a", ""]
    paths, missing = found_in(tmp_path, given)
    assert paths == ["0.png", "a/1.png", "a/1.png", "x\\2.png", "b/1.png", "./0.png", "a", ""]
    assert missing == [str(tmp_path / "b/1.png"), str(tmp_path)]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.json:img", ("a.json", "img")),
        ("/x/a.json:/y/img", ("/x/a.json", "/y/img")),
        ("C:\\a.json:C:\\img", ("C:\\a.json", "C:\\img")),
        ("C:/a.json:img", ("C:/a.json", "img")),
        ("a.json:D:/img", ("a.json", "D:/img")),
        ("b:a.json:img", ("b:a.json", "img")),
        ("a.json", ("", "a.json")),
        ("C:\\a.json", ("", "C:\\a.json")),
    ],
)
def test_the_colon_of_a_drive_does_not_separate(name, parts):
    assert _split(name) == parts


def turned_dataset(root, orientation, suffix=".jpg", size=(48, 32)):
    """One image of that size as stored, black but for a white top left corner."""
    pixels, exif = np.zeros((size[1], size[0], 3), np.uint8), Image.Exif()
    pixels[:16, :16] = 255
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(root / f"0{suffix}", exif=exif)
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 16, 16], "segmentation": [[0, 0, 16, 0, 16, 16, 0, 16]]}
    images = [{"id": 1, "file_name": f"0{suffix}", "width": size[0], "height": size[1]}]
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": [one], "categories": [{"id": 1, "name": "corner"}]}))
    return CocoSource(root / "a.json", root)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_image_annotated_as_it_is_stored_is_read_so(tmp_path, orientation, suffix):
    source = turned_dataset(tmp_path, orientation, suffix)
    for image in (np.asarray(source.read(0)), source.pixels(0).permute(1, 2, 0).numpy()):
        assert image.shape == (32, 48, 3)
        assert image[:12, :12].min() > 200
        assert max(image[20:].max(), image[:, 20:].max()) < 60
    assert check(source) == []
    if suffix == ".jpg":
        told = "a.json: has the size of 1 image as stored, which EXIF turns on its side, the first 0.jpg: taken as stored; "
        assert told in source.remarks[0]


def test_other_turns_leave_the_size(tmp_path):
    source = turned_dataset(tmp_path, 3)
    assert source.remarks == []
    assert np.asarray(source.read(0))[-12:, -12:].min() > 200


def test_an_image_of_another_size_is_still_refused(tmp_path):
    source = turned_dataset(tmp_path, 6)
    Image.new("RGB", (32, 48)).save(tmp_path / "0.jpg")
    with pytest.raises(CorruptImageError, match=r"0\.jpg: 32 x 48 pixels, .*a\.json says 48 x 32"):
        source.read(0)


def test_a_deep_image_is_turned_with_its_opacity():
    values = np.arange(6, dtype=np.uint16).reshape(1, 2, 3)
    image = DeepImage(values, "x", 65535, alpha=values[0] / np.float32(9))
    turned = image.turned(6)
    assert torch.equal(torch.from_numpy(turned.values.copy()), torch.rot90(torch.from_numpy(values), -1, (1, 2)))
    assert (turned.shape, turned.alpha.shape) == ((1, 3, 2), (3, 2))


def test_boxes_as_corners_are_reported_once(tmp_path):
    source = turned_dataset(tmp_path, 1)
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"] = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [i, 8, 38 + i, 30]} for i in range(1, 9)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = CocoSource(tmp_path / "a.json", tmp_path)
    told = "a.json: 8 of 8 objects with a box that reaches over the border of its image, the first annotation 1; boxes look like corners"
    assert told in source.remarks[0]
    assert len(check(source)) == 1
    content["annotations"][0]["bbox"] = [30, 20, 10, 30]
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = CocoSource(tmp_path / "a.json", tmp_path)
    assert "look like corners" not in source.remarks[0]
    assert len(check(source)) == 8
