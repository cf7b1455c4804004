"""CVAT's XML to COCO's JSON and back through `CocoSource`; what is skipped is counted."""

import json

import numpy as np
import pytest
from helpers import sample_image

from convnext.data.convert.cvat import cvat_to_coco
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check
from convnext.errors import ConvnextError, UsageError

HEAD = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>7</id>
      <name>street</name>
      <labels>
        <label><name>car</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
        <label><name>bus</name><color>#00ff00</color><type>any</type><attributes></attributes></label>
        <label><name>person</name><type>skeleton</type><attributes></attributes><svg>&lt;line x1="1"&gt;</svg></label>
        <label><name>nose</name><type>points</type><attributes></attributes><parent>person</parent></label>
      </labels>
    </task>
    <dumped>2024-05-02 10:11:12.131415+00:00</dumped>
  </meta>
"""
BOX = '<box label="bus" source="manual" occluded="0" xtl="10.00" ytl="20.00" xbr="30.00" ybr="40.00" z_order="0"><attribute name="x">1</attribute></box>'
COMMON = 'source="manual" occluded="0"'


def cvat(root, *images, head=HEAD, tracks=""):
    """A folder of images a.jpg, b.jpg, … of 60 x 50, and CVAT's file of them with the shapes of each."""
    (root / "images").mkdir(exist_ok=True)
    body = ""
    for i, shapes in enumerate(images):
        sample_image(0, (60, 50)).save(root / "images" / f"{'abc'[i]}.jpg")
        body += f'  <image id="{i}" name="{"abc"[i]}.jpg" width="60" height="50">\n    {shapes}\n  </image>\n'
    (root / "annotations.xml").write_text(f"{head}{body}{tracks}</annotations>\n")
    return root / "annotations.xml", root / "images"


def reread(found, folder, root):
    (root / "out.json").write_text(json.dumps(found.content))
    source = CocoSource(root / "out.json", folder)
    assert check(source) == []
    return source


def test_boxes(tmp_path):
    found = cvat_to_coco(*cvat(tmp_path, BOX + BOX.replace("bus", "car").replace("10.00", "-5.00"), ""))
    source = reread(found, tmp_path / "images", tmp_path)
    assert source.classes == ["car", "bus"]  # in the order of the labels, without the skeleton and its part
    assert source.paths == ["a.jpg", "b.jpg"]
    assert source.target(0).boxes.tolist() == [[10, 20, 30, 40], [0, 20, 30, 40]]
    assert source.target(0).labels.tolist() == [1, 0]
    assert len(source.target(1)) == 0
    assert found.remarks == []


def test_polygons_ellipses_masks_and_rotated_boxes(tmp_path):
    # CVAT counts a mask's runs row by row within its box, background first: a T of 3 x 2 pixels.
    shapes = f"""
    <polygon label="car" {COMMON} points="10.00,10.00;30.00,10.00;30.00,20.00;10.00,20.00" z_order="0"></polygon>
    <mask label="car" {COMMON} rle="0, 3, 1, 1, 1" left="40" top="30" width="3" height="2" z_order="0"></mask>
    <ellipse label="bus" {COMMON} cx="30.00" cy="25.00" rx="10.00" ry="5.00" z_order="0"></ellipse>
    <box label="bus" {COMMON} xtl="20.00" ytl="20.00" xbr="40.00" ybr="30.00" rotation="90.00" z_order="0"></box>"""
    source = reread(cvat_to_coco(*cvat(tmp_path, shapes)), tmp_path / "images", tmp_path)
    found = source.target(0)
    assert np.allclose(found.boxes, [[10, 10, 30, 20], [40, 30, 43, 32], [20, 20, 40, 30], [25, 15, 35, 35]], atol=1e-3)
    assert np.allclose(found.area, [200, 4, np.pi * 50, 200], rtol=0.003)
    assert found.masks[1, 30:32, 40:43].tolist() == [[1, 1, 1], [0, 1, 0]]
    assert found.masks[1].sum() == 4
    assert found.masks[3].sum() == 200


def test_what_is_no_object_is_counted_by_kind(tmp_path):
    shapes = f"""{BOX}
    <polyline label="car" {COMMON} points="1,1;9,9"></polyline>
    <points label="car" {COMMON} points="1,1"></points><points label="car" {COMMON} points="2,1"></points>
    <cuboid label="car" {COMMON} xtl1="1"></cuboid>
    <skeleton label="person" {COMMON}><points label="nose" {COMMON} points="1,1"></points></skeleton>
    <tag label="car" source="manual"></tag>"""
    found = cvat_to_coco(*cvat(tmp_path, shapes))
    assert len(found.content["annotations"]) == 1
    assert found.remarks == ["skipped what is no object: 1 cuboid, 2 points, 1 polyline, 1 skeleton, 1 tag"]
    with pytest.raises(ConvnextError, match="there are no objects: 1 polyline"):
        cvat_to_coco(*cvat(tmp_path, f'<polyline label="car" {COMMON} points="1,1;9,9"></polyline>'))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('xbr="30.00"', 'xbr="3"', "box from 10, 20 to 3, 40 has no area in an image of 60 x 50"),
        ('xbr="30.00"', 'xbr="nan"', "xbr is not a number: 'nan'"),
        ('ytl="20.00"', "", "<box> has no attribute ytl"),
        ('label="bus"', "", "it has no label"),
        (BOX, f'<mask label="car" {COMMON} rle="3, 9" left="1" top="1" width="3" height="2"/>', "cover 12 of 6 pixels"),
        (BOX, f'<mask label="car" {COMMON} rle="9" left="1" top="1" width="90000" height="90000"/>', "mask of 90000 x 90000"),
        (BOX, f'<polygon label="car" {COMMON} points="1,1;2,2"/>', "polygon of 2 points"),
        (BOX, f'<polygon label="car" {COMMON} points="1;2,2"/>', "points are x,y;x,y;…, not '1'"),
        (BOX, f'<ellipse label="car" {COMMON} cx="9" cy="9" rx="0" ry="3"/>', "ellipse with the radii 0 and 3"),
    ],
)
def test_an_invalid_object_is_skipped_and_reported(tmp_path, old, new, message):
    found = cvat_to_coco(*cvat(tmp_path, BOX, BOX.replace(old, new)))
    assert len(found.content["annotations"]) == 1
    assert message in found.remarks[0]
    assert found.remarks[0].startswith(f"skipped {tmp_path}/annotations.xml, line 21, ")


def test_images_are_found_by_name(tmp_path):
    file, images = cvat(tmp_path, BOX, BOX, BOX)
    (images / "train").mkdir()
    (images / "a.jpg").rename(images / "train" / "a.JPG")
    file.write_text(file.read_text().replace('"a.jpg"', r'"C:\photos\a.jpg"').replace('"c.jpg"', '"gone.jpg"'))
    found = cvat_to_coco(file, images)
    assert [image["file_name"] for image in found.content["images"]] == ["train/a.JPG", "b.jpg"]
    assert "line 23: no image 'gone.jpg' in" in found.remarks[0]


def test_video(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for frame in (0, 1, 3):
        sample_image(0, (60, 50)).save(images / f"frame_{frame:06d}.jpg")
    shape = '<box frame="{}" keyframe="1" outside="{}" occluded="0" xtl="{}" ytl="20.00" xbr="30.00" ybr="40.00" z_order="0"></box>'
    tracks = f"""  <track id="0" label="car" source="manual">{shape.format(0, 0, 10)}{shape.format(1, 0, 12)}{shape.format(2, 1, 12)}</track>
    <track id="1" label="bus" source="manual">{shape.format(1, 0, 5)}{shape.format(9, 0, 5)}
      <points frame="1" keyframe="1" outside="0" points="1,1"/></track>\n"""
    found = cvat_to_coco(*cvat(tmp_path, tracks=tracks))
    source = reread(found, images, tmp_path)
    assert source.paths == ["frame_000000.jpg", "frame_000001.jpg"]  # in the others nothing is visible
    assert source.target(1).boxes[:, 0].tolist() == [12, 5]
    assert found.remarks[0] == "skipped what is no object: 1 points"
    assert "no image 'frame_000009.png'" in found.remarks[1]


def test_files_that_are_not_cvats(tmp_path):
    file, images = cvat(tmp_path, BOX)
    whole = file.read_text()
    with pytest.raises(UsageError, match="no folder"):
        cvat_to_coco(file, tmp_path / "nowhere")
    file.write_text("<annotation><filename>a.jpg</filename></annotation>")
    with pytest.raises(UsageError, match="its root is <annotation>; it looks like Pascal VOC: convnext data convert voc FOLDER"):
        cvat_to_coco(file, images)
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(ConvnextError, match=r"annotations.xml, line \d+: (no element|unclosed token)"):
        cvat_to_coco(file, images)
    file.write_text('<!DOCTYPE a [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]><annotations><image name="&b;"/></annotations>')
    with pytest.raises(ConvnextError, match="line 1: declares the entity a"):
        cvat_to_coco(file, images)
    file.write_text("<annotations>" + "<a>" * 100)
    with pytest.raises(ConvnextError, match="nested more than 64 deep"):
        cvat_to_coco(file, images)
    for encoding in ("gbk", "nonsense"):
        file.write_text(f'<?xml version="1.0" encoding="{encoding}"?><annotations></annotations>')
        with pytest.raises(ConvnextError, match="has an encoding that can't be read: save it as UTF-8"):
            cvat_to_coco(file, images)
    file.write_text("<annotations></annotations>")
    with pytest.raises(ConvnextError, match="lists neither images nor tracks"):
        cvat_to_coco(file, images)


def test_an_image_of_two_entries_and_an_impossible_size(tmp_path):
    file, images = cvat(tmp_path, BOX * 3, BOX, BOX)
    whole = file.read_text()
    file.write_text(whole.replace('"b.jpg"', '"other/a.jpg"'))
    found = cvat_to_coco(file, images)
    assert [image["file_name"] for image in found.content["images"]] == ["a.jpg", "c.jpg"]
    assert found.remarks == [f"skipped {file}, line 20: a.jpg is annotated in {file}, line 17 too"]
    file.write_text(whole.replace('"b.jpg" width="60" height="50"', '"b.jpg" width="90000" height="90000"'))
    assert "b.jpg: an image of 90000 x 90000 pixels" in cvat_to_coco(file, images).remarks[0]
