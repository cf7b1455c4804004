"""YOLO files to COCO's JSON and back through `CocoSource`; mistakes by file and line."""

import json
import re

import numpy as np
import pytest
from helpers import sample_image
from PIL import Image
from pycocotools.coco import COCO

from convnext.data.convert.formats import convert
from convnext.data.convert.yolo import yolo_to_coco
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check
from convnext.errors import ConvnextError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own


def yolo(root, **lists):
    """Folders of images of 60 x 50 and of label files: file name (without ending) → its lines."""
    for name, lines in lists.items():
        path = name.replace("__", "/")
        (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "labels" / path).parent.mkdir(parents=True, exist_ok=True)
        sample_image(0, (60, 50)).save(root / "images" / f"{path}.jpg")
        if lines is not None:
            (root / "labels" / f"{path}.txt").write_text("\n".join(lines))
    return root / "images", root / "labels"


def reread(found, folder, root):
    (root / "out.json").write_text(json.dumps(found.content))
    source = CocoSource(root / "out.json", folder)
    assert check(source) == []
    return source


def test_yolo(tmp_path):
    images, labels = yolo(
        tmp_path, a=["1 0.5 0.5 0.5 0.4", "", "0 0.95 0.5 0.2 1", "0 0.1 0.1 0.4 0.4"], deep__b=["0 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.5"], c=None
    )  # fmt: skip
    (labels / "classes.txt").write_text("dog\ncat\n")
    content = yolo_to_coco(images, labels, ["dog", "cat"]).content
    file = tmp_path / "out.json"
    file.write_text(json.dumps(content))
    source = CocoSource(file, images)
    assert source.paths == ["a.jpg", "c.jpg", "deep/b.jpg"]
    assert source.classes == ["dog", "cat"]
    assert np.allclose(source.target(0).boxes, [[15, 15, 45, 35], [51, 0, 60, 50], [0, 0, 18, 15]], atol=1e-4)  # clipped to the image
    assert source.target(0).labels.tolist() == [1, 0, 0]
    assert len(source.target(1)) == 0
    assert np.allclose(source.target(2).boxes, [[6, 5, 36, 25]], atol=1e-4)
    assert source.target(2).area.item() == pytest.approx(30 * 20)
    polygon = COCO(str(file)).imgToAnns[3][0]
    assert COCO(str(file)).annToMask(polygon).sum() == 600


def test_yolo_polygons_become_masks(tmp_path):
    images, labels = yolo(tmp_path, a=["0 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.5"])
    source = reread(yolo_to_coco(images, labels, ["dog"]), images, tmp_path)
    assert source.target(0).masks[0, 5:25, 6:36].all()
    assert source.target(0).masks.sum() == 600


def test_yolo_sizes_are_those_of_the_upright_image(tmp_path):
    images, labels = yolo(tmp_path, a=["0 0.5 0.5 0.5 0.5"])
    exif = Image.Exif()
    exif[0x0112] = 6
    sample_image(0, (60, 50)).save(images / "a.jpg", exif=exif)
    source = reread(yolo_to_coco(images, labels, ["dog"]), images, tmp_path)
    assert (source.widths[0], source.heights[0]) == (50, 60) == source.read(0).size


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.5 0.5", "class 2, there are 2, counted from 0"),
        ("-1 0.5 0.5 0.5 0.5", "class -1"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5"),
        ("0 0.5 0.5 0.5", "3 numbers after the class"),
        ("0 0.1 0.1 0.6 0.1 0.6", "5 numbers after the class"),
        ("0 0.5 0.5 0.5 half", "not only numbers: '0 0.5 0.5 0.5 half'"),
        ("0 30 25 30 20", "30 is not a fraction of the image's width or height"),
        ("0 0.5 nan 0.5 0.5", "not a fraction of"),
        ("0 0.5 0.5 0 0.5", "has no area in an image of 60 x 50"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3", "polygon without area in an image of 60 x 50"),
    ],
)
def test_yolo_mistakes(tmp_path, line, message):
    images, labels = yolo(tmp_path, a=["0 0.5 0.5 0.5 0.5", line])
    found = yolo_to_coco(images, labels, ["dog", "cat"])
    assert len(found.content["annotations"]) == 1
    assert re.search(rf"^skipped .*labels/a.txt, line 2: .*{message}", found.remarks[0])
    (labels / "a.txt").write_text(line)
    with pytest.raises(ConvnextError, match=rf"labels/a.txt, line 1: .*{message}"):
        yolo_to_coco(images, labels, ["dog", "cat"])


def test_yolo_folders_that_do_not_go_together(tmp_path):
    images, labels = yolo(tmp_path, a=["0 0.5 0.5 0.5 0.5"])
    with pytest.raises(UsageError, match="no folder .*nowhere"):
        yolo_to_coco(images, tmp_path / "nowhere", ["dog"])
    with pytest.raises(UsageError, match="no images in"):
        yolo_to_coco(labels, labels, ["dog"])
    (labels / "b.txt").touch()
    lonely = r"1 label file has no image in .*images, the first .*b.txt"
    assert re.search(lonely, yolo_to_coco(images, labels, ["dog"]).remarks[0])
    (labels / "a.txt").rename(labels / "hidden")
    with pytest.raises(ConvnextError, match=lonely):
        yolo_to_coco(images, labels, ["dog"])
    (labels / "b.txt").unlink()
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(ConvnextError, match="a.jpg and another image differ only in their ending"):
        yolo_to_coco(images, labels, ["dog"])
    (images / "a.jpg").unlink()
    with pytest.raises(ConvnextError, match="a.png: not an image"):
        yolo_to_coco(images, labels, ["dog"])


def test_boxes_and_polygons_mixed_are_reported(tmp_path):
    images, labels = yolo(tmp_path, a=["0 0.5 0.5 0.5 0.5", "0 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.5"])
    found = yolo_to_coco(images, labels, ["dog"])
    assert ["segmentation" in annotation for annotation in found.content["annotations"]] == [False, True]
    assert found.remarks == ["1 of 2 objects have a box and no mask: data.masks_from_boxes=true takes the box"]


@pytest.mark.parametrize(
    ("yaml", "part"),
    [
        ("train: ../train/images\nval: ../valid/images", "val"),  # Roboflow's, which are relative to a folder that is not there
        ("path: /home/me/datasets/dogs\ntrain: train/images\nval: valid/images", "val"),
        ("path: .\ntrain: train/images\ntest: valid/images", "test"),
        ("path: valid\nval: images", "val"),
    ],
)
def test_data_yaml_names_the_parts(tmp_path, yaml, part):
    yolo(tmp_path / "train", a=["0 0.5 0.5 0.5 0.5"])
    yolo(tmp_path / "valid", b=["1 0.5 0.5 0.5 0.5"], c=[])
    file = tmp_path / "data.yaml"
    file.write_text(yaml + "\nnc: 2\nnames: ['dog', 'cat']\n")
    found, images = convert("yolo", file, part=part)
    assert images.resolve() == tmp_path / "valid" / "images"
    assert reread(found, images, tmp_path).paths == ["b.jpg", "c.jpg"]
    with pytest.raises(UsageError, match=f"has the parts .*{part}: choose one with --part"):
        convert("yolo", file)
    with pytest.raises(UsageError, match="is a folder of images: name data.yaml instead"):
        convert("yolo", images, part=part)


def test_data_yaml_that_names_no_folder(tmp_path):
    images, _ = yolo(tmp_path, a=["0 0.5 0.5 0.5 0.5"])
    file = tmp_path / "data.yaml"
    for train, message in (("train.txt", "but a list"), ("[a, b]", "but a list"), ("nowhere/images", "no folder .*nowhere/images")):
        file.write_text(f"train: {train}\nnames: [dog]\n")
        with pytest.raises(UsageError, match=message):
            convert("yolo", file, part="train")
    file.write_text("names: [dog]\nkpt_shape: [17, 3]\n")
    with pytest.raises(UsageError, match=r"has kpt_shape \[17, 3\]: its label files are poses"):
        convert("yolo", images)
    (tmp_path / "names.txt").write_text("dog\n")
    with pytest.raises(UsageError, match="poses"):
        convert("yolo", images, names=tmp_path / "names.txt")


def test_labels_of_nested_images_are_found(tmp_path):
    images, _ = yolo(tmp_path, train__a=["0 0.5 0.5 0.5 0.5"])
    (tmp_path / "names.txt").write_text("dog\n")
    found, _ = convert("yolo", images / "train", names=tmp_path / "names.txt")
    assert len(found.content["annotations"]) == 1
