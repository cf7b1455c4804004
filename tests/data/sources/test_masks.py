"""Folders of images with masks, ADE20K and CamVid, and the errors for invalid ones."""

import json
import pickle

import numpy as np
import pytest
import torch
from helpers import sample_image, shared
from PIL import Image
from source_files import mask_folder

from convnext.data.images import CorruptImageError
from convnext.data.sources import masks
from convnext.data.sources.base import SegmentSubset
from convnext.data.sources.masks import check, mask_of, shares_of_pixels
from convnext.data.sources.open import open_segmentation
from convnext.errors import ConvnextError, UsageError


def read_pair(source, index, evaluation=False):
    image = source.read(index) if evaluation else source.pixels(index)
    return image, mask_of(source, index, image)


def test_a_folder_is_read_and_sound(tmp_path):
    source = open_segmentation(str(mask_folder(tmp_path)))
    assert (len(source), source.classes, source.skipped, source.problems) == (4, ["ground", "thing"], [], [])
    assert source.read(1).size == (48, 40)
    assert (source.pixels(1).dtype, source.pixels(1).shape) == (torch.uint8, (3, 40, 48))
    assert (source.mask(1).dtype, source.mask(1).shape) == (torch.uint8, (40, 48))
    assert source.mask(1).unique(return_counts=True)[1].tolist() == [960, 960]
    assert source.name(2) == str(tmp_path / "images" / "02.jpg")
    assert check(source) == []
    assert torch.equal(pickle.loads(pickle.dumps(source)).mask(0), source.mask(0))


def test_shares_of_pixels_are_those_of_the_masks_or_of_a_stated_sample(tmp_path, monkeypatch):
    source = open_segmentation(str(mask_folder(tmp_path, classes="ground\nthing\nwater\n")))
    values = np.zeros((40, 48), np.uint8)
    values[:10] = 255
    Image.fromarray(values).save(tmp_path / "masks" / "03.png")
    (tmp_path / "masks" / "02.png").write_bytes(b"no image")
    shown = ["  ground: 58.33 %, in 3 images", "  thing: 33.33 %, in 2 images", "  water: in no image", "  ignored: 8.33 %, in 1 image"]
    assert shares_of_pixels(source) == ["pixels by class in all 4 masks:", *shown]
    monkeypatch.setattr(masks, "_SAMPLED", 2)  # the first and the third, which can't be read
    assert shares_of_pixels(source)[:2] == ["pixels by class in 2 of the 4 masks:", "  ground: 50.00 %, in 1 image"]


def test_parts_and_folders_within(tmp_path):
    mask_folder(tmp_path, 2, "train/city")
    mask_folder(tmp_path, 3, "val")
    assert len(open_segmentation(f"{tmp_path}:train")) == 2
    assert len(open_segmentation(f"{tmp_path}:val")) == 3
    with pytest.raises(UsageError, match="has the parts train, val: name one, as in .*:train"):
        open_segmentation(str(tmp_path))
    with pytest.raises(UsageError, match="has no part 'vla': it needs images/vla and masks/vla; did you mean 'val'"):
        open_segmentation(f"{tmp_path}:vla")
    free = mask_folder(mask_folder(tmp_path / "free", 2, "monday"), 3, "tuesday")
    assert len(open_segmentation(str(free))) == 5


def test_ade20k_is_read_as_distributed(monkeypatch):
    root = shared("data/ade20k")
    source = open_segmentation(f"ade20k:{root}:val")
    assert len(source) == 3
    assert (len(source.classes), source.classes[:3], source.classes[149]) == (150, ["wall", "building", "sky"], "flag")
    for i in range(3):
        raw = np.asarray(Image.open(root / "annotations" / "validation" / f"ADE_val_0000000{i + 1}.png")).astype(int)
        assert np.array_equal(source.mask(i).numpy(), np.where(raw == 0, 255, raw - 1))
        assert read_pair(source, i)[0].shape[1:] == source.mask(i).shape
    # The first image is a house under the sky, behind a lawn.
    names = {source.classes[label] for label in source.mask(0).unique().tolist() if label != 255}
    assert {"building", "sky", "grass", "tree"} <= names
    assert check(source) == []
    with pytest.raises(ConvnextError, match="no .*images/training: unpack ADEChallengeData2016.zip"):
        open_segmentation(f"ade20k:{root}:train")
    with pytest.raises(UsageError, match="unknown dataset 'ade20k:vla'; did you mean 'ade20k:val'"):
        open_segmentation("ade20k:vla")
    monkeypatch.setenv("CONVNEXT_DATA", str(root.parent / "nowhere"))
    with pytest.raises(ConvnextError, match=r"no .*nowhere/ADEChallengeData2016/images/validation"):
        open_segmentation("ade20k:val")


def test_camvid_has_11_classes_and_void():
    root = shared("data/camvid")
    source = open_segmentation(f"{root}:val:ignore=11")
    assert (len(source), len(source.classes), source.classes[3]) == (51, 11, "road")
    for i in (0, 25, 50):
        raw = np.asarray(Image.open(root / "masks" / "val" / f"{source.paths[i][:-4]}.png"))
        assert np.array_equal(source.mask(i).numpy(), np.where(raw == 11, 255, raw))
    assert check(source) == []
    # Without a declaration, 11 is not a class but a mistake, reported by path, value and number.
    undeclared = open_segmentation(f"{root}:val")
    void = int((np.asarray(Image.open(root / "masks" / "val" / f"{source.paths[0][:-4]}.png")) == 11).sum())
    problems = check(undeclared)
    assert problems[0].startswith(f"{root}/masks/val/{source.paths[0][:-4]}.png has the value 11 in {void} pixels, first at x ")
    assert problems[0].endswith("or ignore it with :ignore=11")
    with pytest.raises(ConvnextError, match="has the value 11 in"):
        undeclared.mask(0)


def test_void_can_be_named_in_the_class_list(tmp_path):
    root = mask_folder(tmp_path, classes="ground\n(thing)\n")
    source = open_segmentation(str(root))
    assert source.classes == ["ground"]
    assert source.mask(0).unique().tolist() == [0, 255]


def test_given_classes_decide_the_indices(tmp_path):
    root = mask_folder(tmp_path)
    assert open_segmentation(str(root), ["thing", "sky", "ground"]).mask(0).unique().tolist() == [0, 2]
    (root / "classes.txt").unlink()
    assert open_segmentation(str(root), ["thing", "ground"]).mask(0)[0, 0] == 0
    with pytest.raises(ConvnextError, match=r"no .*classes.txt: write one class name per line"):
        open_segmentation(str(root))


def test_unknown_names_are_reported(tmp_path):
    with pytest.raises(UsageError, match="no folder .*nowhere: a folder needs images/ and masks/"):
        open_segmentation(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=f"{tmp_path} has no folder images: .*; ADE20K is named as in ade20k:{tmp_path}:train"):
        open_segmentation(str(tmp_path))
    root = mask_folder(tmp_path / "colours", classes="ground 0 0 0\nthing 1 1 1\n")
    for wrong in ("x", "", "1,", "-1"):
        with pytest.raises(UsageError, match="write values of masks after ignore="):
            open_segmentation(f"{root}:ignore={wrong}")
    with pytest.raises(UsageError, match="999 is not a value of a mask"):
        open_segmentation(f"{root}:ignore=999")
    with pytest.raises(UsageError, match=r"ignore=1: .*classes.txt gives colours; .*\(void\) 0 0 0"):
        open_segmentation(f"{root}:ignore=1")


def test_images_without_masks_and_masks_without_images_are_reported(tmp_path):
    root = mask_folder(tmp_path)
    (root / "masks" / "01.png").unlink()
    (root / "images" / "02.jpg").unlink()
    (root / "masks" / "03.tif").write_bytes((root / "masks" / "03.png").read_bytes())
    (root / "masks" / "00.jpg").touch()
    (root / "images" / ".hidden.png").touch()
    source = open_segmentation(str(root))
    assert source.skipped == [str(root / "masks" / "00.jpg")]
    assert source.remarks == [f"{root}/images: skipped files of operating systems: 1 hidden (.*)"]
    assert check(source) == [
        f"{root}/masks/02.png is a mask without an image in {root}/images",
        f"{root}/masks/03.png is a second mask of one image, beside {root}/masks/03.tif",
        f"{root}/images/01.jpg has no mask: add {root}/masks/01.png, or remove the image",
    ]
    with pytest.raises(ConvnextError, match=r"images/01.jpg has no mask: add .*masks/01.png"):
        read_pair(source, 1)
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask{path.suffix}"))
    with pytest.raises(ConvnextError, match=r"not one image of .*images has a mask: .*00.jpg needs .*masks/00.png"):
        open_segmentation(str(root))
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(ConvnextError, match="images holds no images"):
        open_segmentation(str(root))


def test_a_mask_of_another_size_is_reported_by_both_sizes(tmp_path):
    root = mask_folder(tmp_path)
    Image.fromarray(np.zeros((40, 47), np.uint8)).save(root / "masks" / "02.png")
    # A camera that stood upright: 48 x 40 in the file, 40 x 48 to the eye, and so must be its mask.
    exif = Image.Exif()
    exif[0x0112] = 6
    sample_image(1, (48, 40)).save(root / "images" / "01.jpg", exif=exif)
    source = open_segmentation(str(root))
    assert check(source) == [
        f"{root}/images/0{i}.jpg is {size} pixels, its mask {other}: a mask must have the size of its image, upright as EXIF says"
        for i, size, other in ((1, "40 x 48", "48 x 40"), (2, "48 x 40", "47 x 40"))
    ]
    for evaluation in (False, True):
        with pytest.raises(ConvnextError, match="02.jpg is 48 x 40 pixels, its mask 47 x 40"):
            read_pair(source, 2, evaluation)


def test_damaged_files_are_reported(tmp_path):
    root = mask_folder(tmp_path)
    (root / "images" / "00.jpg").write_bytes(b"no image")
    (root / "masks" / "01.png").write_bytes(b"no mask")
    source = open_segmentation(str(root))
    problems = check(source)
    assert len(problems) == 2
    assert problems[0].startswith(f"{root}/images/00.jpg: not an image")
    assert problems[1].startswith(f"{root}/masks/01.png: not an image of any known format")
    for index in (0, 1):
        with pytest.raises(CorruptImageError):
            read_pair(source, index)


def test_masks_of_0_and_255_are_suspected(tmp_path):
    root = mask_folder(tmp_path)
    for path in (root / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    assert check(open_segmentation(str(root))) == [
        "all masks together hold no class but 'ground': 255 is ignored, so where it is a class, give classes.txt colours ('thing 255 255 255')"
    ]
    (root / "classes.txt").write_text("ground 0 0 0\nthing 255 255 255\n")
    assert check(open_segmentation(str(root))) == []


def test_evaluation_reads_with_pillow_and_training_the_same_values(tmp_path):
    source = open_segmentation(str(mask_folder(tmp_path)))
    for_eye, mask = read_pair(source, 0, evaluation=True)
    for_training, same = read_pair(source, 0)
    assert isinstance(for_eye, Image.Image)
    assert np.array_equal(np.asarray(for_eye), for_training.permute(1, 2, 0))
    assert torch.equal(mask, same)


def test_a_part_of_the_images_has_their_masks(tmp_path):
    source = open_segmentation(str(mask_folder(tmp_path, 12)))
    part = SegmentSubset(source, [3, 5])
    assert [part.name(i) for i in range(2)] == [source.name(3), source.name(5)]
    assert torch.equal(part.mask(0), source.mask(3))
    assert check(part) == []


def objects_file(root, boxes, segmentations):
    sample_image(0, (48, 40)).save(root / "0.png")
    annotations = [
        {"id": i, "image_id": 1, "category_id": i + 1, "bbox": box, "segmentation": shape}
        for i, (box, shape) in enumerate(zip(boxes, segmentations, strict=True))
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(("plate", "table", "cup"))]
    images = [{"id": 1, "file_name": "0.png", "width": 48, "height": 40}]
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return f"coco:{root}/a.json:{root}"


def polygon(left, top, width, height):
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


def test_smaller_objects_lie_on_larger_ones(tmp_path):
    boxes = [[10, 10, 8, 8], [4, 4, 40, 30], [12, 12, 4, 4]]
    source = open_segmentation(objects_file(tmp_path, boxes, [polygon(*box) for box in boxes]))
    assert source.mask(0).unique(return_counts=True)[1].tolist() == [40 * 48 - 1200, 64 - 16, 1200 - 64, 16]


def test_what_only_an_object_without_a_mask_covers_is_ignored(tmp_path):
    boxes = [[10, 10, 8, 8], [4, 4, 40, 30], [12, 12, 4, 4]]
    where = objects_file(tmp_path, boxes, [polygon(*boxes[0]), [], polygon(*boxes[2])])
    source = open_segmentation(where)
    assert dict(zip(*(one.tolist() for one in source.mask(0).unique(return_counts=True)), strict=True)) == {0: 720, 1: 48, 3: 16, 255: 1136}
    assert open_segmentation(f"{where}:masks=boxes").mask(0).unique().tolist() == [0, 1, 2, 3]
    named = open_segmentation(f"{where}:classes=dish=plate+cup")
    assert (named.classes, named.mask(0).unique().tolist()) == (["background", "dish"], [0, 1])
