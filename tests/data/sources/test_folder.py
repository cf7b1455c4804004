"""Folders of classes as people have them: what is a class, and what is said of the rest."""

import os
import runpy
import unicodedata

import pytest
from helpers import image_folder, shared

from convnext.data.counts import described
from convnext.data.images import CorruptImageError
from convnext.data.sources.folder import ImageFolder
from convnext.data.sources.open import open_source, train_and_val
from convnext.data.sources.pixelwise.mask_folder import open_mask_folder
from convnext.errors import ConvnextError
from convnext.inference.inputs import find_items
from convnext.recipe import load_recipe
from convnext.tasks.classify.task import ClassifyTask

SIXTEEN = "16 images, 2 classes: ants 8, bees 8"
NFC, NFD = (unicodedata.normalize(form, "fourmi é") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        (("train", "val"), "data.train={0}/train data.val={0}/val "),
        (("Train", "Valid", "test"), "data.train={0}/Train data.val={0}/Valid "),
        (("training_set", "test_set"), "data.train={0}/training_set data.val={0}/test_set "),
        (("train2017", "val2017"), "data.train={0}/train2017 data.val={0}/val2017 "),
        (("TRAIN", ".cache", "@eaDir"), "data.train={0}/TRAIN "),
        (("validation",), "data.val={0}/validation "),
    ],
)
def test_the_root_of_a_dataset_is_not_taken_for_classes(tmp_path, parts, keys):
    for part in parts:
        image_folder(tmp_path / part, ("ants", "bees"), each=2)
    for opened in (open_source, ClassifyTask().check, lambda where: open_source(where, ["ants", "bees"])):
        with pytest.raises(ConvnextError) as error:
            opened(str(tmp_path))
        assert f"Give {keys.format(tmp_path)}" in str(error.value)
    if len(parts) == 2:
        assert train_and_val(str(tmp_path)) == tuple(str(tmp_path / part) for part in parts)
    assert open_source(str(tmp_path / parts[0])).classes == ["ants", "bees"]


def test_classes_may_be_called_train_or_test_among_others(tmp_path):
    root = image_folder(tmp_path / "vehicles", ("bus", "car", "train"), each=2)
    assert open_source(str(root)).classes == ["bus", "car", "train"]
    only = image_folder(tmp_path / "only", ("train",), each=2)
    assert open_source(str(only), ["bus", "car", "train"]).label(0) == 2  # to a network that knows the class it is no part


def test_one_class_is_refused_with_the_folder_to_give(tmp_path):
    def error_of(where):
        with pytest.raises(ConvnextError) as error:
            ClassifyTask().open(load_recipe("digits", [f"data.train={where}", "data.val=null"]))
        assert ClassifyTask().check(str(where)) == [str(error.value).removeprefix("data.train=")]
        return str(error.value)

    deep = image_folder(tmp_path / "deep" / "a" / "insects", ("ants", "bees"), each=2).parents[1]
    assert error_of(deep).endswith(f"if its folders ants, bees are the classes, give {deep}/a/insects")
    one = image_folder(tmp_path / "one", ("ants",), each=2)
    assert error_of(one).endswith(
        "one has one class, ants, and a classifier needs two or more: put the images of each class into a folder named after it"
    )
    assert len(open_source(str(one), ["ants", "bees"])) == 2  # to be tested on it will do
    os.symlink("..", one / "ants" / "up")
    assert "needs two or more" in error_of(one)  # and the search ends


def test_a_class_is_one_however_unicode_writes_it(tmp_path):
    for name, count in ((NFC, 3), (NFD, 2), ("abeille", 1)):
        image_folder(tmp_path / "train", (name,), each=count)
    image_folder(tmp_path / "val", (NFD,), each=2)
    train = open_source(str(tmp_path / "train"))
    assert train.classes == ["abeille", NFC]
    assert sorted(train.label(i) for i in range(len(train))) == [0, 1, 1, 1, 1, 1]
    assert all(train.read(i).size == (48, 40) for i in range(len(train)))  # paths are as the disk spells them
    assert [open_source(str(tmp_path / "val"), train.classes).label(i) for i in range(2)] == [1, 1]
    assert open_source(str(tmp_path / "val"), ["abeille", NFD]).classes == train.classes  # as weights of before may spell it


def test_an_empty_class_folder_and_images_beside_the_classes_are_reported(tmp_path):
    root = image_folder(tmp_path / "val", ("ants", "bees"), each=2)
    (root / "wasps" / "@eaDir").mkdir(parents=True)
    (root / "stray.jpg").write_bytes((root / "ants" / "000.jpg").read_bytes())
    source = open_source(str(root), ["ants", "bees"])
    assert ClassifyTask().remarks_on(source) == [
        "skipped files of operating systems: 1 @eaDir (Synology)",
        "skipped 1 image outside the class folders, the first stray.jpg",
        f"class folder {root}/wasps holds no images",
    ]
    assert ClassifyTask().counts(source) == "4 images, 2 classes: ants 2, bees 2"


def test_a_class_and_a_file_of_any_bytes_are_read_and_named_printably(tmp_path):
    root = image_folder(tmp_path / "set", ("caf\udce9", "two\nlines", "$x$"), each=1)
    (root / "caf\udce9" / "0\udce9.jpg").write_bytes(b"no image")
    source = ImageFolder(root)
    assert source.classes == ["$x$", "caf\\xe9", "two\\nlines"]
    assert "\n".join(source.classes).encode()
    assert [source.read(i).size for i in (0, 1, 3)] == [(48, 40)] * 3
    with pytest.raises(CorruptImageError):
        source.read(2)
    assert ClassifyTask().overview(str(root)) == ["4 images, 3 classes: $x$ 1, caf\\xe9 2, two\\nlines 1"]


def test_counts_of_many_classes_are_their_first_and_their_extremes():
    names = [f"c{i}" for i in range(30)]
    assert described(465, names, list(range(1, 31))) == "465 images, 30 classes: c0 1, c1 2, c2 3, c3 4, c4 5, …; fewest c0 1, most c29 30"
    assert described(1, ["dot"], [7], objects=True) == "1 image, 7 objects, 1 class: dot 7"
    assert ClassifyTask().overview("digits:val")[0].startswith("360 images, 10 classes: 0 ")


def test_masks_are_found_whatever_lies_beside_them(tmp_path):
    for part, name, ending in (("images", NFC, "jpg"), ("masks", NFD, "png")):
        for path in (f"{name}/@eaDir/0.{ending}", f"{name}/._0.{ending}", f".trash/1.{ending}", f"{name}/0.{ending}"):
            (tmp_path / part / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / part / path).touch()
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbf(void)\r\nred\r\n")
    source = open_mask_folder(str(tmp_path))
    assert (source.paths, source.classes, source.problems) == ([f"{NFC}/0.jpg"], ["red"], [])


@pytest.mark.parametrize("case", ["plain", "mac_doubles", "nas_thumbnails", "notebook_copies", "link_to_parent", "linked_classes/linked"])
def test_folders_as_people_bring_them_are_sixteen_images(tmp_path, case):
    runpy.run_path(str(shared("cases/make.py")))["CASES"][case.split("/")[0]](tmp_path)
    root = tmp_path / "linked" if "/" in case else tmp_path
    assert ClassifyTask().overview(str(root))[0] == SIXTEEN
    assert ClassifyTask().check(str(root)) == []
    assert len(find_items([str(root)])) == 16
