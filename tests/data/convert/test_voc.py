"""VOC files to COCO's JSON and back through `CocoSource`; mistakes by file and line."""

import json

import pytest
from helpers import sample_image

from convnext.data.convert.voc import voc_to_coco
from convnext.data.sources.coco import CocoSource, check
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


def reread(content, folder, root):
    (root / "out.json").write_text(json.dumps(content))
    source = CocoSource(root / "out.json", folder)
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


def test_voc_mistakes_of_all_files_are_reported_at_once(tmp_path):
    root = voc(tmp_path, **{f"p{i}": [{"xmax": 5}] for i in range(7)}, good=[{}])
    for name, old, new, message in (
        ("p0", "bndbox>", "box>", r"p0.xml, line 7: <object> has no <bndbox>"),
        ("p1", "<width>60</width>", "", r"p1.xml, line 3: <size> has no <width>"),
        ("p2", "<width>60", "<width>0", r"p2.xml, line 3: the image's size is 0 x 50"),
    ):
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(ConvnextError, match=message):
            voc_to_coco(root)
    with pytest.raises(ConvnextError, match=r"p3.*p4.*; … 7 files in all"):
        voc_to_coco(root)
    with pytest.raises(UsageError, match="no annotations .*nowhere"):
        voc_to_coco(tmp_path / "nowhere")
