"""Against pycocotools on real annotations; every fault is reported by file and annotation id."""

import json
import math
import pickle
import re

import numpy as np
import pytest
import torch
from helpers import sample_image, shared
from pycocotools import mask as theirs
from pycocotools.coco import COCO

from convnext.data.annotations.choices import Choices
from convnext.data.images import CorruptImageError
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check
from convnext.data.sources.open import open_detection
from convnext.errors import ConvnextError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own

HEIGHT, WIDTH = 40, 48  # of the images below
SQUARE = [10, 10, 30, 10, 30, 25, 10, 25]  # a rectangle of 20 x 15, as a polygon
RUNS = {"size": [HEIGHT, WIDTH], "counts": [10 * HEIGHT + 10, *[15, 25] * 19, 15, 18 * HEIGHT + 15]}  # the same
GOOD = {"image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 15], "area": 300, "iscrowd": 0, "segmentation": [SQUARE]}


def compressed(values):
    encoded = theirs.encode(np.asfortranarray(np.asarray(values, dtype=np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def dataset(root, annotations, images=(7, 9)):
    """A COCO file of that many images, category ids with gaps; annotation ids from 1 where they have none."""
    (root / "images").mkdir(exist_ok=True)
    for key in images:
        sample_image(key, (WIDTH, HEIGHT)).save(root / "images" / f"{key}.png")
    content = {
        "images": [{"id": key, "file_name": f"{key}.png", "height": HEIGHT, "width": WIDTH} for key in images],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}, {"id": 17, "name": "cat"}],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, 1)],
    }
    (root / "file.json").write_text(json.dumps(content))
    return content


def opened(root, **arguments):
    return CocoSource(root / "file.json", root / "images", **arguments)


@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_real_data_is_what_pycocotools_reads(part, capsys):
    folder = shared("data/coco") / part
    source = open_detection(str(folder))
    reference = COCO(str(shared("data/coco") / "annotations" / f"instances_{part}.json"))
    numbers = {category: at for at, category in enumerate(sorted(reference.cats))}
    assert source.classes == [reference.cats[category]["name"] for category in sorted(reference.cats)]
    assert (len(source), source.has_masks, source.skipped) == (100, True, [])
    assert ["are crowds (iscrowd 1)" in remark for remark in source.remarks] == [True]
    crowds = 0
    for i in range(len(source)):
        objects, wanted = source.target(i), reference.imgToAnns[source.ids[i]]
        assert objects.labels.tolist() == [numbers[annotation["category_id"]] for annotation in wanted]
        assert objects.area.tolist() == [annotation["area"] for annotation in wanted]
        assert objects.iscrowd.tolist() == [bool(annotation["iscrowd"]) for annotation in wanted]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (annotation["bbox"] for annotation in wanted)]
        assert torch.equal(objects.boxes, torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        assert source.annotation_ids(i) == [annotation["id"] for annotation in wanted]
        assert all(np.array_equal(a, reference.annToMask(b)) for a, b in zip(objects.masks.numpy(), wanted, strict=True))
        crowds += int(objects.iscrowd.sum())
    assert crowds == {"train2017": 6, "val2017": 5}[part]
    assert sum(source.objects_by_class()) == sum(len(source.object_labels(i)) for i in range(len(source))) == len(reference.anns) - crowds
    assert source.name(0) == str(folder / source.paths[0])
    assert source.pixels(0).shape == (3, source.heights[0], source.widths[0]) == (3, *source.read(0).size[::-1])


def test_real_data_checks_out():
    source = open_detection(str(shared("data/coco/val2017")))
    source.paths, source.ids = source.paths[:10], source.ids[:10]
    assert check(source) == []


def test_polygons_run_lengths_and_gaps_in_ids(tmp_path):
    parts = [SQUARE, [0.4, 0.6, 7.3, 1.2, 3.5, 8.9]]
    mask = np.zeros((HEIGHT, WIDTH))
    mask[10:25, 10:30] = 1
    masks = [[SQUARE], RUNS, compressed(mask), parts]
    categories = [3, 90, 17, 90]
    dataset(tmp_path, [GOOD | {"segmentation": o, "category_id": c} for o, c in zip(masks, categories, strict=True)])
    source = opened(tmp_path)
    objects = source.target(0)
    assert source.classes == ["ant", "cat", "zebra"]
    assert objects.labels.tolist() == [0, 2, 1, 2]
    assert [torch.equal(objects.masks[i], torch.from_numpy(mask.astype(np.uint8))) for i in range(3)] == [True] * 3
    wanted = theirs.decode(theirs.merge(theirs.frPyObjects(parts, HEIGHT, WIDTH)))
    assert np.array_equal(objects.masks[3].numpy(), wanted)
    assert (len(source.target(1)), source.target(1).masks.shape, source.target(1).boxes.shape) == (0, (0, HEIGHT, WIDTH), (0, 4))
    assert list(source.target(1).to_dict()) == ["boxes", "labels", "masks", "iscrowd", "area", "image_id"]


def test_annotations_in_any_order_go_to_their_images(tmp_path):
    shuffled = [GOOD | {"image_id": key, "bbox": [key, 10, at + 1, 15]} for at, key in enumerate([11, 7, 9, 11, 7])]
    dataset(tmp_path, shuffled, images=(9, 7, 11))
    source = opened(tmp_path)
    assert source.ids == [9, 7, 11]
    assert [source.annotation_ids(i) for i in range(3)] == [[3], [2, 5], [1, 4]]
    assert [source.target(i).boxes[:, [0, 2]].tolist() for i in range(3)] == [[[9, 12]], [[7, 9], [7, 12]], [[11, 12], [11, 15]]]
    assert [source.target(i).image_id for i in range(3)] == source.ids


def test_a_network_s_classes_number_the_labels(tmp_path):
    dataset(tmp_path, [GOOD, GOOD | {"category_id": 90}])
    assert opened(tmp_path, classes=["zebra", "yak", "cat", "ant"]).target(0).labels.tolist() == [3, 0]
    with pytest.raises(ConvnextError, match=r"file\.json: category 'zebra' is not one of the classes trained on; did you mean 'zebras'"):
        opened(tmp_path, classes=["ant", "cat", "zebras"])
    source = opened(tmp_path, classes=["ant", "zebra"])
    assert source.remarks == [
        f"{tmp_path}/file.json: ignored the category 'cat' (id 17), which has no annotation: it is not one of the classes trained on"
    ]


def test_training_can_leave_out_images_without_objects(tmp_path):
    dataset(tmp_path, [GOOD | {"image_id": 11}, GOOD | {"image_id": 9, "iscrowd": 1, "segmentation": RUNS}], images=(7, 9, 11))
    assert opened(tmp_path).ids == [7, 9, 11]
    source = opened(tmp_path, keep_empty=False)
    assert source.ids == [11]
    assert "1 of 2 objects is a crowd (iscrowd 1)" in source.remarks[0]
    assert "skipped 2 of 3 images, which have no objects" in source.remarks[1]
    assert source.target(0).boxes.tolist() == [[10, 10, 30, 25]]
    dataset(tmp_path, [])
    with pytest.raises(ConvnextError, match="lists no images with objects"):
        opened(tmp_path, keep_empty=False)


def test_boxes_alone_are_reported(tmp_path):
    bare = {key: value for key, value in GOOD.items() if key != "segmentation"}
    dataset(tmp_path, [bare, bare])
    source = opened(tmp_path)
    assert (source.has_masks, source.target(0).masks, source.remarks) == (False, None, [])
    assert "masks" not in source.target(0).to_dict()
    masks = opened(tmp_path, choices=Choices(masks="boxes")).target(0).masks
    assert masks.sum((1, 2)).tolist() == [300, 300]


def test_objects_without_a_mask_are_ignored_or_their_boxes_are_their_masks(tmp_path):
    dataset(tmp_path, [GOOD, GOOD | {"segmentation": []}, GOOD | {"image_id": 9, "segmentation": [[]]}])
    source = opened(tmp_path)
    told = f"{tmp_path}/file.json: 2 of 3 objects without a mask, the first annotation 2: "
    assert source.remarks == [told + "they are ignored in training and evaluation; data.masks_from_boxes=true takes their boxes as masks"]
    assert (source.has_masks, source.target(0).iscrowd.tolist(), source.objects_by_class()) == (True, [False, True], [1, 0, 0])
    assert opened(tmp_path, keep_empty=False).ids == [7]
    boxes = opened(tmp_path, choices=Choices(masks="boxes"))
    assert boxes.remarks == [told + "their boxes are their masks"]
    assert (boxes.target(0).iscrowd.tolist(), boxes.objects_by_class()) == ([False, False], [3, 0, 0])
    assert torch.equal(boxes.target(0).masks[0], boxes.target(0).masks[1])
    alone = opened(tmp_path, choices=Choices(masks="optional"))
    assert (alone.has_masks, alone.target(0).masks, alone.objects_by_class()) == (False, None, [3, 0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [10, 10, 0, 15]}, "box without area"),
        ({"bbox": [10, 10, 20, -15]}, "box without area"),
        ({"bbox": [48, 10, 20, 15]}, "outside its image of 48 x 40"),
        ({"bbox": [-30, 10, 30, 15]}, "outside its image"),
        ({"bbox": [10, math.nan, 20, 15]}, "not finite"),
        ({"bbox": [10, 10, 20]}, "no box of four numbers"),
        ({"bbox": None}, "no box of four numbers"),
        ({"area": math.inf}, "not finite"),
        ({"image_id": 8}, "is of image 8, which the file does not list"),
        ({"category_id": 4}, "is of category 4, which the file does not list"),
        ({"category_id": "ant"}, "no 'category_id' that is a whole number"),
        ({"iscrowd": "0"}, "an 'iscrowd' of '0', which is neither 0 nor 1"),
        ({"bbox": [0.2, 0.2, 0.5, 1]}, "has a box in parts of its image, not in pixels: .*; multiply it by its image's 48 x 40"),
        ({"segmentation": {"size": [40, 48], "counts": "ZZZZZ"}}, "damaged mask: its runs do not cover"),
        ({"segmentation": [[1, 1, 5, 5]]}, "polygon of 4 numbers"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9, 3]]}, "polygon of 7 numbers"),
        ({"segmentation": [[1, 1, 5, math.nan, 9, 9]]}, "not finite"),
        ({"segmentation": [[1, 1, 5, 1e9, 9, 9]]}, "far outside its image"),
        ({"segmentation": [[1, "1", 5, 5, 9, 9]]}, "neither polygons nor run lengths"),
        ({"segmentation": {"counts": [5]}}, "neither polygons nor run lengths"),
        ({"segmentation": {"size": [40, 40], "counts": [1600]}}, "mask of 40 x 40, its image is 48 x 40"),
        ({"segmentation": {"size": [40, 48], "counts": [1600]}}, "runs cover 1600 of the image's 1920 pixels"),
        ({"segmentation": {"size": [40, 48], "counts": 5}}, "neither a list nor a text"),
    ],
)
def test_what_cannot_be_used_is_skipped_and_reported(tmp_path, change, message):
    dataset(tmp_path, [GOOD, GOOD | {"id": 41} | change, GOOD | {"image_id": 9}])
    source = opened(tmp_path)
    assert [len(source.target(i)) for i in range(2)] == [1, 1]
    [problem] = source.problems
    assert problem.startswith(f"{tmp_path}/file.json: annotation {change.get('id', 41)} ")
    assert re.search(message, problem)
    assert (source.count, source.invalid) == (3, [problem])
    assert source.remarks == [f"skipped 1 invalid annotation, the first: {problem}"]
    assert problem in check(source)


def test_check_reads_what_opening_does_not(tmp_path):
    upside_down = [
        GOOD | {"segmentation": [[30, 30, 47, 30, 47, 39, 30, 39]]},
        GOOD | {"segmentation": compressed(np.zeros((HEIGHT, WIDTH)))},
    ]
    damaged = GOOD | {"image_id": 9, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "ZZZZZ"}}
    dataset(tmp_path, [GOOD, *upside_down, GOOD | {"bbox": [10, 10, 20, 60]}, damaged], images=(7, 9, 11, 13))
    sample_image(0, (20, 20)).save(tmp_path / "images" / "7.png")
    (tmp_path / "images" / "9.png").write_bytes(b"no image")
    (tmp_path / "images" / "13.png").unlink()
    source = opened(tmp_path)
    problems = check(source)
    expected = ["annotation 5 .*damaged mask", "image .*13.png is missing", "7.png: 20 x 20 pixels, .*file.json says 48 x 40", "annotation 2 .*does not fit its box",
            "annotation 3 .*without a pixel", "annotation 4 .*reaches over the border", "9.png: not an image"]  # fmt: skip
    assert len(problems) == len(expected)
    assert all(re.search(pattern, problem) for pattern, problem in zip(expected, problems, strict=True)), problems
    assert "1 of the 4 images" in source.remarks[1]
    for read in (source.read, source.pixels):
        for index in (0, 1, 3):
            with pytest.raises(CorruptImageError):
                read(index)


def test_an_object_that_is_annotated_twice_is_reported(tmp_path):
    dataset(tmp_path, [GOOD, GOOD | {"category_id": 17}, GOOD | {"image_id": 9}, GOOD, GOOD | {"segmentation": RUNS}])
    assert check(opened(tmp_path)) == [f"{tmp_path}/file.json: annotation {i} repeats annotation 1: remove one" for i in (4, 5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "not a COCO annotation file: it lacks the list 'images'"),
        ({"categories": [{"id": 3}]}, "entry 0 of 'categories' has no 'name' that is a text"),
        ({"categories": [{"id": 3, "name": "ant"}, {"id": 4, "name": "ant"}]}, "two categories are called 'ant'"),
        ({"categories": [{"id": 3, "name": "ant"}, {"id": 3, "name": "bee"}]}, "entry 1 of 'categories' has the id 3 of an earlier one"),
        ({"images": [{"id": 7, "file_name": "7.png", "height": 40}]}, "entry 0 of 'images' has no 'width' that is a whole number"),
        ({"images": [{"id": 7, "file_name": "7.png", "height": 0, "width": 4}]}, "id 7, is 4 x 0 pixels"),
        (
            {"images": [{"id": 7, "file_name": "gone.png", "height": 40, "width": 48}]},
            "none of the 1 images .* for instance not .*gone.png",
        ),
        ({"images": []}, "lists no images"),
    ],
)
def test_other_than_a_coco_file_is_reported(tmp_path, change, message):
    content = dataset(tmp_path, [GOOD, GOOD | {"category_id": 4}])
    (tmp_path / "file.json").write_text(json.dumps(content | change))
    with pytest.raises(ConvnextError, match=message):
        opened(tmp_path)


def test_names_of_datasets(tmp_path):
    dataset(tmp_path, [GOOD])
    assert open_detection(f"coco:{tmp_path}/file.json:{tmp_path}/images").ids == [7, 9]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "file.json").rename(tmp_path / "annotations" / "instances_images.json")
    assert open_detection(str(tmp_path / "images"), keep_empty=False).ids == [7]
    assert open_detection("scenes:val").classes == [str(digit) for digit in range(10)]
    for where, message in (
        (str(tmp_path), f"several parts: name one, {tmp_path}/images"),
        (str(tmp_path / "photos"), "no annotations of .*photos': .*annotations/instances_photos.json .* does not exist"),
        (f"{tmp_path}/mine.json", f"as in coco:{tmp_path}/mine.json:FOLDER"),
        (f"{tmp_path}/annotations", f"as in coco:{tmp_path}/annotations/instances_images.json:FOLDER"),
        ("coco:file.json", "write coco:file.json:FOLDER"),
        ("coco:photos", "write coco:ANNOTATIONS.json:FOLDER"),
        (f"coco:{tmp_path}/nowhere.json:{tmp_path}", r"no annotation file .*nowhere.json$"),
        (f"coco:{tmp_path}/annotations/instances_image.json:{tmp_path}", "did you mean '.*/instances_images.json'"),
        (f"coco:{tmp_path}/annotations/instances_images.json:{tmp_path}/nowhere", r"no folder .*nowhere for the images of .*s\.json$"),
        (f"coco:{tmp_path}/annotations/instances_images.json:{tmp_path}/imags", "did you mean '.*/images'"),
        (f"coco:{tmp_path}/annotations/instances_images.json:{tmp_path}/no/images", "there is no folder .*/no$"),
        ("scenes:vla", "did you mean 'scenes:val'"),
    ):
        with pytest.raises(UsageError, match=message):
            open_detection(where)
    with pytest.raises(ConvnextError, match="the classes of scenes:val are 0, 1"):
        open_detection("scenes:val", classes=["ant"])
    (tmp_path / "annotations" / "instances_images.json").write_text("{")
    with pytest.raises(ConvnextError, match="instances_images.json is not JSON"):
        open_detection(str(tmp_path / "images"))


def test_a_source_travels_to_a_worker(tmp_path):
    dataset(tmp_path, [GOOD, GOOD | {"image_id": 9}])
    source = opened(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.target(1).masks, source.target(1).masks)
