"""VOC and YOLO files to COCO's JSON and back through `Coco`; mistakes by file and line."""

import json

import numpy as np
import pytest
from helpers import sample_image
from PIL import Image
from pycocotools.coco import COCO

from convnext.data.convert.annotations import voc_to_coco, yolo_to_coco
from convnext.data.sources.coco import Coco, check
from convnext.errors import ConvnextError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own

OBJECT = """  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox>
      <xmin>{xmin}</xmin>
      <ymin>{ymin}</ymin>
      <xmax>{xmax}</xmax>
      <ymax>{ymax}</ymax>
    </bndbox>
  </object>
"""
BOX = {"name": "dog", "difficult": 0, "xmin": 11, "ymin": 21, "xmax": 30, "ymax": 40}


def voc(root, **images):
    """A VOC folder: file name (without ending) → its objects."""
    (root / "Annotations").mkdir()
    (root / "JPEGImages").mkdir()
    for name, objects in images.items():
        sample_image(0, (60, 50)).save(root / "JPEGImages" / f"{name}.jpg")
        body = "".join(OBJECT.format(**BOX | entry) for entry in objects)
        size = "<size>\n<width>60</width>\n<height>50</height>\n</size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>\n<filename>{name}.jpg</filename>\n{size}\n{body}</annotation>\n")
    return root


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


def reread(content, folder, root):
    (root / "out.json").write_text(json.dumps(content))
    source = Coco(root / "out.json", folder)
    assert check(source) == []
    return source


def test_voc(tmp_path):
    objects = [{}, {"name": "cat", "difficult": 1}, {"xmin": 1, "ymin": 1, "xmax": 60, "ymax": 50}]
    content = voc_to_coco(voc(tmp_path, b=[], a=objects))
    source = reread(content, tmp_path / "JPEGImages", tmp_path)
    assert source.paths == ["a.jpg", "b.jpg"]
    assert source.classes == ["cat", "dog"]
    found = source.target(0)
    # VOC's first pixel is 1 and its last one is within: 11 to 30 are the 20 pixels from edge 10 to edge 30.
    assert found.boxes.tolist() == [[10, 20, 30, 40], [10, 20, 30, 40], [0, 0, 60, 50]]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.iscrowd.tolist() == [False, True, False]
    assert found.area.tolist() == [400, 400, 3000]
    assert len(source.target(1)) == 0
    assert not source.has_masks


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"xmax": 5}, r"a.xml, line 10: box from 11, 21 to 5, 40 has no area in an image of 60 x 50"),
        ({"ymin": 70, "ymax": 80}, r"a.xml, line 10: box .* no area"),
        ({"xmin": "left"}, r"a.xml, line 11: <xmin> is no number: 'left'"),
        ({"ymin": "nan"}, r"a.xml, line 12: <ymin> is no number"),
        ({"name": "<"}, r"a.xml, line 8: not well-formed"),
    ],
)
def test_voc_mistakes(tmp_path, change, told):
    with pytest.raises(ConvnextError, match=told):
        voc_to_coco(voc(tmp_path, a=[change]))


def test_voc_mistakes_of_all_files_are_told_at_once(tmp_path):
    root = voc(tmp_path, **{f"p{i}": [{"xmax": 5}] for i in range(7)}, good=[{}])
    for name, old, new, told in (
        ("p0", "bndbox>", "box>", r"p0.xml, line 7: <object> has no <bndbox>"),
        ("p1", "<width>60</width>", "", r"p1.xml, line 3: <size> has no <width>"),
        ("p2", "<width>60", "<width>0", r"p2.xml, line 3: the image's size is 0 x 50"),
    ):
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(ConvnextError, match=told):
            voc_to_coco(root)
    with pytest.raises(ConvnextError, match=r"p3.*p4.*; … 7 files in all"):
        voc_to_coco(root)
    with pytest.raises(UsageError, match="no annotations .*nowhere"):
        voc_to_coco(tmp_path / "nowhere")


def test_yolo(tmp_path):
    images, labels = yolo(
        tmp_path, a=["1 0.5 0.5 0.5 0.4", "", "0 0.95 0.5 0.2 1", "0 0.1 0.1 0.4 0.4"], deep__b=["0 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.5"], c=None
    )  # fmt: skip
    (labels / "classes.txt").write_text("dog\ncat\n")
    content = yolo_to_coco(images, labels, ["dog", "cat"])
    file = tmp_path / "out.json"
    file.write_text(json.dumps(content))
    source = Coco(file, images)
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
    ("line", "told"),
    [
        ("2 0.5 0.5 0.5 0.5", "class 2, there are 2, counted from 0"),
        ("-1 0.5 0.5 0.5 0.5", "class -1"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5"),
        ("0 0.5 0.5 0.5", "3 numbers after the class"),
        ("0 0.1 0.1 0.6 0.1 0.6", "5 numbers after the class"),
        ("0 0.5 0.5 0.5 half", "not numbers alone: '0 0.5 0.5 0.5 half'"),
        ("0 30 25 30 20", "30 is no part of the image's width or height"),
        ("0 0.5 nan 0.5 0.5", "no part of"),
        ("0 0.5 0.5 0 0.5", "box without area"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3", "polygon without area"),
    ],
)
def test_yolo_mistakes(tmp_path, line, told):
    images, labels = yolo(tmp_path, a=["0 0.5 0.5 0.5 0.5", line])
    with pytest.raises(ConvnextError, match=rf"labels/a.txt, line 2: .*{told}"):
        yolo_to_coco(images, labels, ["dog", "cat"])


def test_yolo_folders_that_do_not_go_together(tmp_path):
    images, labels = yolo(tmp_path, a=["0 0.5 0.5 0.5 0.5"])
    with pytest.raises(UsageError, match="no folder .*nowhere"):
        yolo_to_coco(images, tmp_path / "nowhere", ["dog"])
    with pytest.raises(UsageError, match="no images in"):
        yolo_to_coco(labels, labels, ["dog"])
    (labels / "b.txt").touch()
    with pytest.raises(ConvnextError, match=r"1 label files have no image in .*images, the first .*b.txt"):
        yolo_to_coco(images, labels, ["dog"])
    (labels / "b.txt").unlink()
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(ConvnextError, match="a.jpg and another image differ in their ending alone"):
        yolo_to_coco(images, labels, ["dog"])
    (images / "a.jpg").unlink()
    with pytest.raises(ConvnextError, match="a.png: not an image"):
        yolo_to_coco(images, labels, ["dog"])
