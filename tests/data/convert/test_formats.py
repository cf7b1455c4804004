"""`convnext data convert`: what it prints, which options it takes, and where it looks for images."""

import json

import pytest
from command import run
from helpers import sample_image

from convnext.data.convert.formats import convert
from convnext.errors import UsageError

XML = '<annotations><image id="0" name="a.jpg" width="60" height="50"><box label="x" xtl="1" ytl="1" xbr="9" ybr="9"/>{}</image></annotations>'


def cvat(root, folder=".", more=""):
    (root / folder).mkdir(exist_ok=True)
    sample_image(0, (60, 50)).save(root / folder / "a.jpg")
    (root / "annotations.xml").write_text(XML.format(more))
    return root / "annotations.xml"


def test_remarks_are_on_standard_error_and_the_result_on_standard_output(tmp_path):
    file, output = cvat(tmp_path, "photos", '<points label="x" points="1,1"/><box label="x"/>'), tmp_path / "out.json"
    done = run("data", "convert", "cvat", file, output, "--images", tmp_path / "photos")
    assert done.stdout == f"{output}: 1 image, 1 object of 1 class; data.train=coco:{output}:{tmp_path}/photos\n"
    assert done.stderr.splitlines() == [
        "skipped what is no object: 1 points",
        f"skipped {file}, line 1, box in a.jpg: <box> has no attribute xtl",
        "classes: x",
    ]
    assert json.loads(output.read_text())["annotations"][0]["bbox"] == [1, 1, 8, 8]
    assert run("data", "check", f"coco:{output}:{tmp_path}/photos", "--task", "detect").stdout.startswith("1 image, 1 object")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cvat", "annotations.xml", "--part", "train"), "--part has no effect on cvat; cvat takes --images"),
        (("labelme", "annotations.xml", "--names", "x"), "--names has no effect on labelme"),
        (("voc", ".", "--images", "x"), "--images has no effect on voc; voc takes --part"),
        (("yolo", ".", "--images", "x"), "--images has no effect on yolo; yolo takes --part and --labels and --names"),
        (("cvat", "."), ". is a folder: name the XML file that the tool exported"),
        (("label-studio", "gone.json"), "no file gone.json"),
        (("yolo", "annotations.xml"), "annotations.xml is neither a folder of images nor a data.yaml"),
        (("voc", "annotations.xml"), "annotations.xml is a file: name the folder"),
        (("label-studio", "annotations.xml"), "is XML, not JSON; it looks like CVAT: convnext data convert cvat FILE"),
        (("labelme", "annotations.xml"), "is XML, not JSON; it looks like CVAT"),
        (("cvat", "coco.json"), "coco.json is not an XML of CVAT; it looks like COCO, which needs no conversion"),
        (("cvat", "task.zip"), "task.zip is an archive: unpack it"),
        (("cvat", "annotations.xml", "--images", "empty"), "no images in empty: name their folder with --images"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, arguments, message):
    cvat(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "task.zip").touch()
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    monkeypatch.chdir(tmp_path)
    kind, source, *options = arguments
    assert message in run("data", "convert", kind, source, "out.json", *options, code=2).stderr
    assert not (tmp_path / "out.json").exists()


def test_images_are_looked_for_beside_the_annotations(tmp_path):
    for folder in (".", "images"):
        file = cvat(tmp_path, folder)
        assert convert("cvat", file)[1] == tmp_path / folder
    with pytest.raises(UsageError, match="no folder"):
        convert("cvat", file, images=tmp_path / "nowhere")
