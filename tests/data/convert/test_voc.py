"""VOC files to COCO's JSON and back through `CocoSource`; mistakes by file and line."""

import json
import re
import shutil

import pytest
from helpers import sample_image

from convnext.data.convert.formats import convert
from convnext.data.convert.voc import voc_to_coco
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check
from convnext.errors import ConvnextError, UsageError

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


def reread(found, folder, root):
    (root / "out.json").write_text(json.dumps(found.content))
    source = CocoSource(root / "out.json", folder)
    assert check(source) == []
    return source


def test_voc(tmp_path):
    objects = [{}, {"name": "cat", "difficult": 1}, {"xmin": 1, "ymin": 1, "xmax": 60, "ymax": 50}]
    found = voc_to_coco(voc(tmp_path, b=[], a=objects))
    assert found.remarks == []
    source = reread(found, tmp_path / "JPEGImages", tmp_path)
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
    ("change", "message"),
    [
        ({"xmax": 5}, r"a.xml, line 10: box from 11, 21 to 5, 40 has no area in an image of 60 x 50"),
        ({"ymin": 70, "ymax": 80}, r"a.xml, line 10: box .* no area"),
        ({"xmin": "left"}, r"a.xml, line 11: <xmin> is not a number: 'left'"),
        ({"ymin": "nan"}, r"a.xml, line 12: <ymin> is not a number"),
        ({"name": "<"}, r"a.xml, line 8: not well-formed"),
    ],
)
def test_voc_mistakes(tmp_path, change, message):
    with pytest.raises(ConvnextError, match=message):
        voc_to_coco(voc(tmp_path, a=[change]))


def test_voc_mistakes_are_skipped_and_reported(tmp_path):
    root = voc(tmp_path, **{f"p{i}": [{"xmax": 5}, {}] for i in range(7)}, good=[{}] * 9)
    found = voc_to_coco(root)
    assert len(found.content["annotations"]) == 16
    assert found.remarks[0] == f"skipped {root}/Annotations/p0.xml, line 10: box from 11, 21 to 5, 40 has no area in an image of 60 x 50"
    assert found.remarks[5:] == ["… 7 mistakes in all"]
    with pytest.raises(UsageError, match="no annotations .*nowhere"):
        voc_to_coco(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bndbox>", "box>", r"bad.xml, line 7: <object> has no <bndbox>"),
        ("<name>dog", "<name>", r"bad.xml, line 7: <name> is empty"),
        ("</annotation>", "", r"bad.xml, line 18: no element found"),
        ("annotation>", "annotations>", r"bad.xml is not Pascal VOC's XML.*it looks like CVAT"),
    ],
)
def test_one_bad_file_refuses_nothing(tmp_path, old, new, message):
    root = voc(tmp_path, bad=[{}], good=[{}])
    path = root / "Annotations" / "bad.xml"
    path.write_text(path.read_text().replace(old, new))
    found = voc_to_coco(root)
    assert re.search(message, found.remarks[0])
    assert len(found.content["annotations"]) == 1


def test_voc_with_more_mistakes_than_objects_is_refused(tmp_path):
    with pytest.raises(ConvnextError, match=r"p0.*p4.*; … 7 mistakes in all"):
        voc_to_coco(voc(tmp_path, **{f"p{i}": [{"xmax": 5}] for i in range(7)}, good=[{}]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<filename>a.jpg", "<filename>a"),
        ("<filename>a.jpg", r"<filename>C:\photos\a.jpg"),
        ("<filename>a.jpg", "<filename>renamed.png"),
        ("<filename>a.jpg</filename>\n", ""),
        ("<width>60", "<width>0"),
        ("<width>60</width>", ""),
        ("<size>\n<width>60</width>\n<height>50</height>\n</size>", ""),
    ],
)
def test_the_image_says_what_an_xml_lacks(tmp_path, old, new):
    root = voc(tmp_path, a=[{}])
    path = root / "Annotations" / "a.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert voc_to_coco(root).content["images"] == [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 50}]


def test_image_sets_choose_a_part(tmp_path):
    root = voc(tmp_path, a=[{}], b=[{}, {}], c=[{}])
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, lines in (("train", "a\nc\n"), ("val", "b\ngone\n"), ("dog_train", "a 1\nc -1\n")):
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(lines)
    assert [image["file_name"] for image in voc_to_coco(root, "train").content["images"]] == ["a.jpg", "c.jpg"]
    found = voc_to_coco(root, "val")
    assert [image["file_name"] for image in found.content["images"]] == ["b.jpg"]
    assert "val.txt: 1 image without annotations, the first gone" in found.remarks[0]
    assert voc_to_coco(root).remarks == ["ImageSets/Main lists the parts train, val: all images are converted, --part takes one of them"]
    with pytest.raises(UsageError, match="no list .*tran.txt; did you mean 'train'"):
        voc_to_coco(root, "tran")


def test_roboflows_layout_has_a_folder_for_each_part(tmp_path):
    root = voc(tmp_path, a=[{}])
    for part in ("train", "valid"):
        (root / part).mkdir()
        for source in ("Annotations/a.xml", "JPEGImages/a.jpg"):
            shutil.copy(root / source, root / part)
    shutil.rmtree(root / "Annotations")
    with pytest.raises(UsageError, match="has the parts train, valid: convert each by itself, with --part train"):
        convert("voc", root)
    found, images = convert("voc", root, part="valid")
    assert images == root / "valid"
    assert reread(found, images, tmp_path).paths == ["a.jpg"]


def test_polygons_of_roboflow_become_masks(tmp_path):
    root = voc(tmp_path, a=[{}])
    path = root / "Annotations" / "a.xml"
    corners = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate([(11, 21), (31, 21), (31, 31)], 1))
    path.write_text(path.read_text().replace("</object>", f"<polygon>{corners}</polygon></object>"))
    source = reread(voc_to_coco(root), root / "JPEGImages", tmp_path)
    assert source.target(0).boxes.tolist() == [[10, 20, 30, 30]]
    assert source.target(0).area.tolist() == [100]
    assert source.has_masks
