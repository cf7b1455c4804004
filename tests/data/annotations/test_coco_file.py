"""Annotation files as tools write them: ids, categories, parts of masks and areas that need a correction, and chosen classes."""

import json

import pytest

from convnext.data.annotations import json_file
from convnext.data.annotations.choices import Choices, united
from convnext.data.annotations.coco_file import area_of, read_coco, read_ids
from convnext.errors import ConvnextError, UsageError

SQUARE = [10, 10, 30, 10, 30, 25, 10, 25]
GOOD = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 15], "segmentation": [SQUARE]}
CATEGORIES = [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}, {"id": 5, "name": "person"}]


def written(root, annotations, categories=CATEGORIES):
    images = [{"id": key, "file_name": f"{key}.png", "height": 40, "width": 48} for key in (1, 2)]
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root / "a.json"


def test_annotations_without_an_id_of_their_own_are_numbered_by_position(tmp_path):
    ids = [4, 4, "4", None, -1, 2.0, True, 10**30]
    file = written(tmp_path, [GOOD | {"id": key} for key in ids] + [GOOD, GOOD | {"id": 9, "bbox": [0, 0, 0, 0]}, GOOD | {"bbox": 3}])
    found = read_coco(file)
    assert [one["id"] for one in found.annotations] == [4, -2, -3, -4, -5, -6, 1, -8, -9]
    assert found.remarks == [f"{file}: numbered 7 of 11 annotations anew, whose id is missing or repeated"]
    assert [problem.partition(" has ")[0] for problem in found.invalid] == [f"{file}: annotation 9", f"{file}: annotation at position 10"]


def test_whole_numbers_may_be_written_as_fractions(tmp_path):
    file = written(tmp_path, [GOOD | {"id": 1, "image_id": 1.0, "category_id": 2.0}, GOOD | {"id": 2, "image_id": 1.5}])
    file.write_text(file.read_text().replace('"width": 48', '"width": 48.0').replace('"id": 5', '"id": 5.0'))
    found = read_coco(file)
    assert [found.labels[one["category_id"]] for one in found.annotations] == [1]
    assert (found.images[1]["width"], list(found.labels)) == (48, [1, 2, 5])
    assert [type(found.images[1]["width"]), type(list(found.labels)[2])] == [int, int]
    assert found.invalid == [f"{file}: annotation 2 has no 'image_id' that is a whole number"]


def test_the_good_polygons_of_an_object_stay(tmp_path):
    parts = [[5, 5, 6, 6], SQUARE, [], [1, 2, 3, 4, 5, 1e9]]
    file = written(tmp_path, [GOOD | {"id": 3, "segmentation": parts}, GOOD | {"id": 4, "segmentation": parts[:1]}])
    found = read_coco(file)
    assert [one["segmentation"] for one in found.annotations] == [[SQUARE]]
    assert found.corrected == [
        f"{file}: annotation 3 has a polygon of 4 numbers: three points or more have six or more; its other polygons are used"
    ]
    assert len(found.invalid) == 1


@pytest.mark.parametrize(
    ("segmentation", "area"),
    [
        ([SQUARE], 300),
        ([SQUARE, [0, 0, 4, 0, 0, 4]], 308),
        ({"size": [40, 48], "counts": [100, 7, 40 * 48 - 107]}, 7),
        ({"size": [40, 48], "counts": "T37ej1"}, 7),
        (None, 300),
        ([], 300),
    ],
)
def test_an_area_that_is_missing_is_that_of_the_mask_or_the_box(segmentation, area):
    assert area_of(GOOD | {"segmentation": segmentation, "area": None}) == area
    assert area_of(GOOD | {"segmentation": segmentation}) == area
    assert area_of(GOOD | {"segmentation": segmentation, "area": 5}) == 5


def test_a_category_without_annotations_may_have_the_name_of_another(tmp_path):
    root = [{"id": 0, "name": "car"}, *CATEGORIES]
    file = written(tmp_path, [GOOD | {"id": 1}], root)
    found = read_coco(file)
    assert (found.classes, found.category_ids) == (["car", "bus", "person"], {"car": 1, "bus": 2, "person": 5})
    assert found.remarks == [f"{file}: ignored the category 'car' (id 0), which has no annotation: another one has its name"]
    assert read_ids(file).categories == found.category_ids
    with pytest.raises(ConvnextError, match="two categories are called 'car'"):
        read_coco(written(tmp_path, [GOOD | {"id": 1}, GOOD | {"id": 2, "category_id": 0}], root))


def test_chosen_classes_count_the_labels_and_others_are_dropped(tmp_path):
    annotations = [GOOD | {"id": i, "category_id": key} for i, key in enumerate([1, 2, 5, 5, 1])]
    file = written(tmp_path, annotations)
    found = read_coco(file, choices=Choices(united({"person": ("person",), "car": ("car",)})))
    assert (found.classes, found.labels, found.category_ids) == (["person", "car"], {1: 1, 5: 0}, {"person": 5, "car": 1})
    assert [one["id"] for one in found.annotations] == [0, 2, 3, 4]
    assert found.remarks == [f"{file}: dropped 1 object of other categories than the chosen classes: bus 1"]
    with pytest.raises(UsageError, match=r"a\.json has no category 'buss'; did you mean 'bus'"):
        read_coco(file, choices=Choices(united({"buss": ("buss",)})))


def test_classes_can_unite_categories(tmp_path):
    choices = Choices(united({"vehicle": ("bus", "car"), "person": ("person",)}))
    found = read_coco(written(tmp_path, [GOOD | {"id": 1}, GOOD | {"id": 2, "category_id": 2}]), choices=choices)
    assert (found.classes, found.labels) == (["vehicle", "person"], {1: 0, 2: 0, 5: 1})
    assert found.category_ids == {"vehicle": 1, "person": 5}
    assert read_coco(tmp_path / "a.json", choices=Choices(united({"bus": ("car", "bus")}))).category_ids == {"bus": 2}
    # A file to evaluate on may lack some, and is matched with the network's classes.
    file = written(tmp_path, [GOOD | {"id": 1, "category_id": 2}], CATEGORIES[1:2])
    found = read_coco(file, ["vehicle", "person"], choices)
    assert (found.classes, found.labels) == (["vehicle", "person"], {2: 0})
    with pytest.raises(ConvnextError, match="'vehicle' is not one of the classes trained on"):
        read_coco(file, ["car", "bus"], choices)


def test_a_file_is_bounded_and_must_be_json(tmp_path):
    for text, message in (("<annotations></annotations>", "is XML, not JSON; it looks like CVAT"), ("[" * 100_000, "is not JSON")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ConvnextError, match=message):
            read_coco(tmp_path / "a.json")
    with pytest.raises(ConvnextError, match="has more than 0 GiB: export parts of it"):
        json_file.read_json(tmp_path / "a.json", 10)
    for side in (0, 10**7, 10**30):
        file = written(tmp_path, [])
        file.write_text(file.read_text().replace('"width": 48', f'"width": {side}'))
        with pytest.raises(ConvnextError, match=rf"id 1, is {side} x 40 pixels"):
            read_coco(file)
