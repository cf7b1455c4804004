"""Annotations of the kinds that users bring: `data check` says of each what is wrong with it, or what was corrected."""

import importlib.util

import pytest
from command import run
from helpers import shared

_SIX = "6 images, 12 objects, 2 classes: red 4, blue 8\n"
_BOXES = "data.masks_from_boxes=true takes their boxes as masks"
CASES = {  # the exit code, and parts of what is printed
    "ids_in_lexicographic_order": (0, "12 images, 24 objects, 2 classes: red 7, blue 17\nnothing wrong with"),
    "categories_0_and_7": (0, f"{_SIX}nothing wrong with"),
    "masks_as_crowds": (1, "12 of 12 objects are crowds (iscrowd 1)", "as CVAT writes masks, add data.crowds=objects", "holds no object to train on"),
    "masks_as_crowds/mixed.json": (0, "6 images, 1 object,", "11 of 12 objects are crowds (iscrowd 1)"),
    "one_without_outline": (0, "6 images, 11 objects", f"1 of 12 objects without a mask, the first annotation 4: they are ignored in training and evaluation; {_BOXES}"),
    "ids_repeat": (0, _SIX, "numbered 10 of 12 annotations anew, whose id is missing or repeated\nnothing wrong"),
    "parts_of_the_picture": (1, "skipped 12 invalid annotations", "annotation 1 has a box in parts of its image, not in pixels", "multiply it by its image's 128 x 96"),
    "one_turned_photograph": (0, _SIX, "which EXIF turns on its side, the first 000.jpg: taken as stored; if the boxes fit the upright image, exchange"),
    "two_thirds_without_objects": (0, "12 images, 8 objects, 2 classes: red 3, blue 5\n8 of 12 images have no objects: training skips them unless data.keep_empty=true\nnothing wrong"),
    "root_category_of_the_same_name": (0, "4 images, 8 objects, 2 classes: red 3, blue 5", "ignored the category 'red' (id 0), which has no annotation"),
    "one_bad_part": (1, _SIX, "annotation 1 has a polygon of 4 numbers: three points or more have six or more; its other polygons are used"),
    "area_null": (0, f"{_SIX}nothing wrong"),
    "backslashes": (0, _SIX, "found 6 images by the end of the path, the first img\\000.png as 000.png"),
    "dense": (0, "4 images, 1024 objects, 1 class: dot 1024\nthe fullest image has 256 objects, and at most 100 are found in an image: add detect.most=256\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_read_or_reported(name, tmp_path):
    case, _, file = name.partition("/")
    spec = importlib.util.spec_from_file_location("make", shared("cases/make.py"))
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    make.CASES[case](tmp_path)
    code, *parts = CASES[name]
    printed = run("data", "check", f"coco:{tmp_path / (file or 'ann.json')}:{tmp_path / 'img'}", code=code).stdout
    for part in parts:
        assert part in printed
