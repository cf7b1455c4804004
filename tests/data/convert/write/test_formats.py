"""COCO to each format and back by its reader: the same objects, and a count of what the format can't hold."""

import json

import numpy as np
import pytest
from coco_datasets import CLASSES, SIZE, coco_dataset
from command import run
from pycocotools.coco import COCO

from convnext.data.convert.coco import read_for_writing
from convnext.data.convert.formats import convert
from convnext.data.convert.write.formats import FORMATS
from convnext.data.run_lengths import decode, from_segmentation
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check
from convnext.errors import ConvnextError, UsageError
from convnext.inference.datasets import save_content

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own

OUTPUTS = {kind: f"out{how.ending or ''}" for kind, how in FORMATS.items()}
LOST = {
    "coco-dataset": [],
    "cvat": ["skipped 1 crowd: CVAT's XML has no regions of many objects"],
    "label-studio": ["skipped 1 crowd: Label Studio's JSON has no regions of many objects"],
    "labelme": ["skipped 1 crowd: LabelMe's JSON has no regions of many objects"],
    "voc": ["skipped 6 masks: Pascal VOC's XML has boxes"],
    "yolo": [
        "3 objects of several parts or with holes became one polygon each, whose parts are joined by lines of no width",
        "skipped 1 crowd: YOLO's text has no regions of many objects",
        "wrote 1 object of a box as four corners: the other objects of their images have polygons",
    ],
}


def back(kind, output, folder):
    """What the reader of a format finds."""
    if kind == "yolo":
        return convert("yolo", output / "images")[0]
    if kind == "labelme":
        return convert("labelme", output / "labels")[0]
    if kind == "coco-dataset":
        return read_for_writing(output, folder)
    return convert(kind, output, images=None if kind == "voc" else folder)[0]


def objects(content):
    """Boxes, masks and crowds of the objects, by image and class."""
    names = {one["id"]: one["file_name"] for one in content["images"]}
    classes = {one["id"]: one["name"] for one in content["categories"]}
    found = {name: [] for name in names.values()}
    for one in content["annotations"]:
        segmentation = one.get("segmentation")
        mask = None if not segmentation else decode(from_segmentation(segmentation, SIZE[1], SIZE[0])).numpy().astype(bool)
        found[names[one["image_id"]]].append((classes[one["category_id"]], one["bbox"], mask, one["iscrowd"]))
    return found


def assert_same(kind, before, after):
    """The same objects in the same images; masks by IoU, boxes as finely as the format has them."""
    assert after.keys() == before.keys()
    for name, ones in before.items():
        kept = [one for one in ones if not one[3] or kind in ("coco-dataset", "voc")]
        assert len(after[name]) == len(kept)
        for (label, box, mask, crowd), (label_after, box_after, mask_after, crowd_after) in zip(kept, after[name], strict=True):
            assert (label_after, crowd_after) == (label, crowd)
            assert np.allclose(box_after, box, atol=1.01 if kind == "voc" or mask is not None else 0.006)
            if mask is not None and kind != "voc":
                assert (mask & mask_after).sum() / (mask | mask_after).sum() >= 0.98
            elif mask is None:
                assert mask_after is None or kind == "yolo"  # where an image has a polygon, boxes are polygons too


@pytest.mark.parametrize("kind", FORMATS)
def test_there_and_back(tmp_path, kind):
    content = read_for_writing(*coco_dataset(tmp_path)).content
    output = tmp_path / OUTPUTS[kind]
    assert sorted(save_content(content, tmp_path / "photos", kind, output)) == LOST[kind]
    found = back(kind, output, tmp_path / "photos")
    assert [remark for remark in found.remarks if "mask" not in remark and "ImageSets" not in remark] == []
    assert set(CLASSES) == {one["name"] for one in found.content["categories"]}
    assert_same(kind, objects(content), objects(found.content))
    (tmp_path / "back.json").write_text(json.dumps(found.content))
    assert check(CocoSource(tmp_path / "back.json", tmp_path / "photos")) == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_images_are_linked_one_by_one_where_the_format_expects_them(tmp_path):
    content = read_for_writing(*coco_dataset(tmp_path)).content
    out = tmp_path / "out"
    save_content(content, tmp_path / "photos", "voc", out)
    assert not (out / "JPEGImages").is_symlink()  # Ultralytics would follow it, and look for labels beside the folder it leads to
    assert (out / "JPEGImages" / "sub" / "x.jpg").read_bytes() == (tmp_path / "photos" / "sub" / "x.jpg").read_bytes()
    (tmp_path / "photos" / "none.jpg").unlink()
    content["images"] = content["images"][2:]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] > 11]
    remarks = save_content(content, tmp_path / "photos", "voc", out)
    assert "1 image could not be linked, missing or within an archive: put them where the format expects them" in remarks
    assert sorted(path.name for path in (out / "JPEGImages").rglob("*.jpg")) == ["x.jpg", "x.jpg"]  # none of the dataset before
    # Beside the images themselves nothing is linked, and the images of others are not replaced.
    save_content(content, tmp_path / "photos", "voc", out)
    (tmp_path / "photos").rename(tmp_path / "JPEGImages")
    save_content(content, tmp_path / "JPEGImages", "voc", tmp_path)
    assert not (tmp_path / "JPEGImages" / "sub" / "x.jpg").is_symlink()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").touch()
    with pytest.raises(UsageError, match="images exists, and its images are not those of the dataset"):
        save_content(content, tmp_path / "JPEGImages", "yolo", tmp_path)
    assert (tmp_path / "images" / "mine.jpg").exists()


def test_a_coco_dataset_has_ids_scores_and_exact_masks_for_pycocotools(tmp_path):
    content = read_for_writing(*coco_dataset(tmp_path)).content
    content["annotations"][1]["score"] = 0.75
    save_content(content, tmp_path / "photos", "coco-dataset", tmp_path / "out.json")
    before, after = COCO(str(tmp_path / "train.json")), COCO(str(tmp_path / "out.json"))
    assert after.getImgIds() == before.getImgIds()
    assert after.getCatIds() == before.getCatIds()
    for image in before.getImgIds():
        for one, other in zip(before.imgToAnns[image], after.imgToAnns[image], strict=True):
            assert ("segmentation" in one) == ("segmentation" in other)
            assert "segmentation" not in one or (before.annToMask(one) == after.annToMask(other)).all()
    kinds = [type(one.get("segmentation")) for one in after.loadAnns(after.getAnnIds(imgIds=[10, 11]))]
    assert kinds == [dict, type(None), list, dict]  # a hole, a box, two parts, a crowd
    assert [one["score"] for one in after.anns.values() if "score" in one] == [0.75]


@pytest.mark.parametrize("kind", FORMATS)
def test_names_that_markup_and_terminals_would_misread(tmp_path, kind):
    names = ("a&b<c>\"d'.jpg", "tab\tand\nnewline.jpg", "esc\x1b[31m.jpg", "-x #1?.jpg", "yes.jpg")
    content = read_for_writing(*coco_dataset(tmp_path, names)).content
    remarks = save_content(content, tmp_path / "photos", kind, tmp_path / OUTPUTS[kind])
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".xml", ".json", ".yaml", ".txt") and path.is_file()]
    assert not any(b"\x1b" in path.read_bytes() for path in written)
    found = back(kind, tmp_path / OUTPUTS[kind], tmp_path / "photos")
    expected = set(names) - ({"esc\x1b[31m.jpg"} if kind == "cvat" else set())  # VOC's files are named as the images
    assert {one["file_name"] for one in found.content["images"]} >= expected
    assert any("1 file name with characters that XML can't hold" in remark for remark in remarks) == (kind in ("cvat", "voc"))


def test_what_reaches_over_the_border_is_cut_and_what_remains_of_nothing_is_reported(tmp_path):
    content = read_for_writing(*coco_dataset(tmp_path)).content
    first, *_, box, _ = content["annotations"]
    box["bbox"] = [-10, 80, 30, 30]
    first["segmentation"] = {"size": [90, 120], "counts": "1"}
    content["annotations"][3]["segmentation"] = [[-10, 10, 150, 10, 150, 40, -10, 40], [130, 1, 140, 1, 140, 9]]
    remarks = save_content(content, tmp_path / "photos", "yolo", tmp_path / "out")
    assert remarks[0].startswith("skipped annotation 1: its runs cover")
    assert (tmp_path / "out" / "labels" / "a b.txt").read_text() == "1 0.083333333 0.94444444 0.16666667 0.11111111\n"
    values = [float(word) for file in (tmp_path / "out" / "labels").rglob("*.txt") for word in file.read_text().split()[1:]]
    assert (min(values), max(values)) == (0, 1)


def test_paths_stay_below_the_output_and_two_images_of_one_label_file_are_refused(tmp_path):
    content = read_for_writing(*coco_dataset(tmp_path)).content
    content["images"][0]["file_name"] = "../../../evil.jpg"
    content["images"][1]["file_name"] = "/etc/evil2.jpg"
    save_content(content, tmp_path / "photos", "yolo", tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "labels" / "evil.txt").exists()
    assert (tmp_path / "deep" / "out" / "labels" / "etc" / "evil2.txt").exists()
    content["images"][0]["file_name"] = "none.png"
    with pytest.raises(UsageError, match=r"none\.png and none\.jpg would both be none\.txt in the dataset"):
        save_content(content, tmp_path / "photos", "yolo", tmp_path / "out")
    save_content(content, tmp_path / "photos", "cvat", tmp_path / "out.xml")  # has both in one file


def test_a_windows_path_means_folders(tmp_path):
    content = read_for_writing(*coco_dataset(tmp_path)).content
    content["images"][2]["file_name"] = "sub\\x.jpg"
    save_content(content, tmp_path / "photos", "yolo", tmp_path / "out")
    assert (tmp_path / "out" / "labels" / "sub" / "x.txt").read_text().count("\n") == 1


def test_the_command_converts_both_ways_and_replaces_nothing_unasked(tmp_path, monkeypatch):
    coco_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = run("data", "convert", "coco", "train.json", "voc", "--images", "photos", "--to", "voc")
    assert done.stdout == "voc: 5 images, 7 objects of 2 classes\n"
    assert done.stderr.splitlines()[0] == LOST["voc"][0]
    done = run("data", "convert", "voc", "voc", "again.xml", "--to", "cvat")  # any reader, any writer
    assert done.stdout == "again.xml: 5 images, 7 objects of 2 classes\n"
    (tmp_path / "voc" / "Annotations" / "old.xml").write_text("<annotation/>")
    for arguments, message in (
        (("coco", "train.json", "voc", "--to", "voc"), "voc/Annotations exists already: choose another output, or add --overwrite"),
        (("coco", "train.json", "again.xml", "--to", "cvat"), "again.xml exists already"),
        (("coco", "train.json", "x.json"), "train.json is COCO already: name another format with --to"),
        (("cvat", "again.xml", "again.xml", "--to", "cvat", "--overwrite"), "again.xml is what is converted"),
        (("coco", "train.json", "x.json", "--to", "cvat"), "CVAT's XML is written to a .xml file"),
        (("coco", "train.json", "x.json", "--to", "yolo"), "YOLO's text is written to a folder, with labels/ and images/ in it"),
        (("coco", "train.json", "photos", "--to", "yolo"), "photos is the folder of the images: choose another output folder"),
    ):
        images = ("--images", "photos")
        assert message in run("data", "convert", *arguments, *images, code=2).stderr
    run("data", "convert", "coco", "train.json", "voc", "--images", "photos", "--to", "voc", "--overwrite")
    assert not (tmp_path / "voc" / "Annotations" / "old.xml").exists()  # of another dataset
    assert (tmp_path / "voc" / "Annotations" / "sub" / "x.xml").exists()


def test_what_cant_be_written_leaves_the_old_folder(tmp_path, monkeypatch):
    content = read_for_writing(*coco_dataset(tmp_path)).content
    save_content(content, tmp_path / "photos", "yolo", tmp_path / "out")
    before = (tmp_path / "out" / "labels" / "a b.txt").read_text()
    (tmp_path / "out" / ".labels.new.tmp").mkdir()  # as a killed process leaves it
    content["images"][4]["file_name"] = "x" * 300 + ".jpg"
    content["annotations"] = []
    with pytest.raises(ConvnextError, match="could not write"):
        save_content(content, tmp_path / "photos", "yolo", tmp_path / "out")
    assert (tmp_path / "out" / "labels" / "a b.txt").read_text() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.yaml", "images", "labels"]
